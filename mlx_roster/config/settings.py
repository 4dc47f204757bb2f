"""The sections of a roster file that are not of one model, and what all sections have in common."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_roster.config.values import (
    Budget,
    Duration,
    Fraction,
    Glob,
    HostName,
    Lifetime,
    Origin,
    Patience,
    Residency,
    Size,
)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ServerSettings(Settings):
    """Where the server listens and what it takes."""

    host: str = Field(default="127.0.0.1", description="Address to listen on. Any but a loopback one needs auth.keys.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    hosts: tuple[HostName, ...] = Field(
        default=(),
        strict=False,
        description="Names beside the loopback ones by which a server on a loopback address may be asked: a proxy's.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(),
        strict=False,
        description='Web pages that may use the server, by their exact origin, https://app.example.com; "*" is any.',
    )
    strict_fields: bool = Field(
        default=False,
        description="Refuse unknown request fields instead of naming them in the x-roster-ignored header.",
    )
    request_limit: Size = Field(
        default="8MiB",
        validate_default=True,
        le=128 * 2**20,  # half of the largest frame to a worker: see workers/wire.py
        description="Largest request body: a size, or a number of bytes; at most 128MiB.",
    )
    n_limit: int = Field(default=8, ge=1, description="Answers that one request may ask for, by its field n.")
    header_timeout: Patience = Field(
        default="15s",
        validate_default=True,
        description="How long a client may take to send a request's headers, from its connection on.",
    )
    body_timeout: Patience = Field(
        default="30s",
        validate_default=True,
        description="How long a client may send nothing before its request's body is whole.",
    )
    idle_timeout: Patience = Field(
        default="75s", validate_default=True, description="How long a connection is kept open between two requests."
    )
    write_timeout: Patience = Field(
        default="30s", validate_default=True, description="How long a client may read nothing of what there is for it."
    )
    write_buffer: Size = Field(
        default="4MiB",
        validate_default=True,
        description="Bytes of an answer that wait for a client that reads too slowly before it is cut off.",
    )
    shutdown_grace: Duration = Field(
        default="30s",
        validate_default=True,
        description="How long running responses may go on after a signal to stop.",
    )


class MemorySettings(Settings):
    """How much memory models may take together."""

    budget: Budget = Field(
        default="75%",
        validate_default=True,
        description="Bytes for all models together: a share of the device's recommended working set, or an amount.",
    )
    headroom: Fraction = Field(
        default="10%",
        validate_default=True,
        description="Added to the estimate of a model's size before it is loaded, for what grows with use.",
    )
    spare_worker: bool = Field(
        default=True, description="Keep one idle worker with mlx already imported, so that a load starts at once."
    )


class SchedulingSettings(Settings):
    """Who waits for whom, and for how long: see docs/scheduling.md."""

    max_wait: Duration = Field(
        default="30s",
        validate_default=True,
        description="How long a request waits for room before the models in its way stop taking new requests.",
    )
    min_residency: Residency = Field(
        default="3x",
        validate_default=True,
        description="How long a freshly loaded model takes requests in any case: a duration, or a multiple of the "
        "time that its load took.",
    )
    queue_timeout: Duration = Field(
        default="2m",
        validate_default=True,
        description="How long a request waits for its model's load to begin before it is refused.",
    )
    max_queued: int = Field(default=512, ge=0, description="Requests that wait, for all models together.")
    load_timeout: Patience = Field(
        default="5m", validate_default=True, description="How long a load may go on without getting any further."
    )
    stall_timeout: Patience = Field(
        default="1m",
        validate_default=True,
        description="How long a model's worker may get nowhere with what it runs before it is replaced.",
    )
    drain_timeout: Duration = Field(
        default="1m",
        validate_default=True,
        description="How long a model that is to go may keep running requests without producing anything for them.",
    )
    ttl: Lifetime = Field(
        default="15m",
        validate_default=True,
        description='How long a model stays loaded after its last request; "never" keeps it until its room is needed.',
    )


class LogSettings(Settings):
    """What it says of itself."""

    format: Literal["auto", "text", "json"] = Field(
        default="auto", description="auto: for people on a terminal, else one JSON object for each line."
    )
    prompts: bool = Field(
        default=False, description="Log what requests ask and what is answered. Otherwise none of it is ever logged."
    )


class UnlistedSettings(Settings):
    """What a request may name beyond this file."""

    hub: tuple[Glob, ...] = Field(
        default=(), strict=False, description='Globs of Hub repo ids that may be loaded, such as "mlx-community/*".'
    )
    paths: bool = Field(
        default=False,
        description="Allow folders of models and adapters below the directory that the server was started in.",
    )


class DiscoverSettings(Settings):
    """Models that are served without being listed in this file."""

    hub_cache: bool = Field(default=False, description="Serve every MLX model that is in the local Hub cache.")


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return IPv6Address(host) == IPv6Address("::1") if ":" in host else IPv4Address(host).is_loopback
    except AddressValueError:
        return False
