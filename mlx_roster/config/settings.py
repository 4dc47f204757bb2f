"""The sections of a roster file that are not of one model, and what all sections have in common."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

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
    Stall,
)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ServerSettings(Settings):
    """Where the server listens and what it takes."""

    host: str = Field(
        default="127.0.0.1", description="The address to listen on. Any but a loopback one needs auth.keys."
    )
    port: int = Field(default=8080, ge=0, le=65535, description="The port to listen on; 0 takes any that is free.")
    hosts: tuple[HostName, ...] = Field(
        default=(),
        strict=False,
        description="Names by which a server on a loopback address may be asked, beside the loopback ones: that of a "
        "proxy before it.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(),
        strict=False,
        description='Web pages that may use the server, by their exact origin, https://app.example.com; "*" is any.',
    )
    strict_fields: bool = Field(
        default=False,
        description="Refuse unknown request fields. Otherwise they are named in the header x-roster-ignored.",
    )
    request_limit: Size = Field(
        default="8MiB",
        validate_default=True,
        le=128 * 2**20,  # half of the largest frame to a worker: see workers/wire.py
        description="The largest request body, up to 128MiB.",
    )
    n_limit: int = Field(default=8, ge=1, description="How many answers one request may ask for, by its field n.")
    header_timeout: Patience = Field(
        default="15s",
        validate_default=True,
        description="How long a client may take to send a request's headers, from its connection on.",
    )
    body_timeout: Patience = Field(
        default="30s",
        validate_default=True,
        description="How long a client may take for each 16KiB of a request's body, or for the rest of it.",
    )
    idle_timeout: Patience = Field(
        default="75s", validate_default=True, description="How long a connection is kept open between two requests."
    )
    write_timeout: Patience = Field(
        default="30s",
        validate_default=True,
        description="How long a client may take to read 16KiB of what waits for it, or all of that.",
    )
    write_buffer: Size = Field(
        default="4MiB",
        validate_default=True,
        description="Bytes of an answer that wait for a client that reads too slowly before it is cut off.",
    )
    shutdown_grace: Duration = Field(
        default="30s",
        validate_default=True,
        description="How long running responses may go on after a signal to stop; a second signal cuts them at once.",
    )

    @field_validator("host")
    @classmethod
    def _an_address(cls, host: str) -> str:
        if (problem := host_problem(host)) is not None:
            raise ValueError(problem)
        return host


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
        default=True, description="Keep one idle worker that has imported mlx already, so that a load starts at once."
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
        description="How long a request waits for its model's load to begin; then it is refused with 503.",
    )
    max_queued: int = Field(
        default=512, ge=0, description="Requests that wait, for all models together; the next is refused with 429."
    )
    load_timeout: Patience = Field(
        default="5m",
        validate_default=True,
        description="How long a load or a download may go on without getting any further before it fails.",
    )
    stall_timeout: Stall = Field(
        default="1m",
        validate_default=True,
        description="How long a model's worker may get nowhere with what it runs before it is replaced; 5s or more.",
    )
    drain_timeout: Duration = Field(
        default="1m",
        validate_default=True,
        description="How long a model that is to go may keep running requests without producing anything for them; "
        "then they are cut.",
    )
    ttl: Lifetime = Field(
        default="15m",
        validate_default=True,
        description='How long a model stays loaded after its last request; "never" keeps it until its room is needed.',
    )


class LogSettings(Settings):
    """What it says of itself."""

    format: Literal["auto", "text", "json"] = Field(
        default="auto",
        description="How lines are written: text for people, json for one object a line; auto is text on a terminal "
        "and json otherwise.",
    )
    prompts: bool = Field(
        default=False, description="Log what requests ask and what is answered. Otherwise none of it is ever logged."
    )


class UnlistedSettings(Settings):
    """What a request may name beyond this file."""

    hub: tuple[Glob, ...] = Field(
        default=(),
        strict=False,
        description='Globs of Hub repo ids that a request may name, and so have downloaded: ["mlx-community/*"].',
    )
    paths: bool = Field(
        default=False,
        description="Let a request name a folder, of a model or an adapter, below the directory that the server was "
        "started in.",
    )


class DiscoverSettings(Settings):
    """Models that are served without being listed in this file."""

    hub_cache: bool = Field(
        default=False, description="Serve every MLX model that is in the local Hub cache, by its repo id."
    )


def host_problem(host: str) -> str | None:
    """What is wrong with `host` as an address to listen on, as far as that can be seen by looking at it."""
    if not host:
        return "should not be empty: 127.0.0.1 is this machine for itself, 0.0.0.0 is every address that it has"
    if host.startswith("[") and host.endswith("]"):
        return f"should be without brackets: {host[1:-1]}"
    if "/" in host:
        return "should be an address and no URL: 127.0.0.1"
    if ":" in host:
        try:
            IPv6Address(host)
        except AddressValueError:
            return "is no address; the port goes into server.port" if host.count(":") == 1 else "is no IPv6 address"
    return "should be without spaces" if any(map(str.isspace, host)) else None


def reaches_others(host: str) -> bool:
    """Whether listening on `host` is listening to other machines. What is no address reaches nobody."""
    return host_problem(host) is None and not is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether listening on `host` is listening to this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return IPv6Address(host) == IPv6Address("::1") if ":" in host else IPv4Address(host).is_loopback
    except AddressValueError:
        return False
