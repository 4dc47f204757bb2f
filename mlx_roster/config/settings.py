"""The sections of a roster file that are not of one model, and what all sections have in common."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv6Address

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mlx_roster.config.values import Budget, Duration, Fraction, Glob, Lifetime, Patience, Residency, Size


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ServerSettings(Settings):
    """Where the server listens and what it takes."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; loopback only in this version.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
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

    @field_validator("host")
    @classmethod
    def _loopback(cls, host: str) -> str:
        if not _is_loopback(host):
            raise ValueError(
                f'"{host}" is not a loopback address (127.0.0.0/8, ::1, localhost); '
                "any other needs API keys, which this version does not have yet"
            )
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


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return IPv6Address(host) == IPv6Address("::1") if ":" in host else IPv4Address(host).is_loopback
    except AddressValueError:
        return False
