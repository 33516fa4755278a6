"""The settings of the service, read from a TOML file; unknown keys are refused."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Key(_Table):
    """One client's key, of which only a hash is kept, and what that client may ask."""

    name: str = Field(min_length=1)
    """For logs and metrics."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the key in lower-case hexadecimal: `printf %s "$KEY" | sha256sum`."""
    requests_at_once: int | None = Field(default=None, ge=1)
    largest_run: int | None = Field(default=None, ge=1)
    """Overrides `limits.largest_run` for this key, downwards or upwards."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt and completion tokens of all rollouts. A request that costs more is paid for by waiting afterwards."""


class Prices(_Table):
    """What a million tokens cost, in whatever currency the operator counts in."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)
    cached: float | None = Field(default=None, ge=0)
    """Prompt tokens that the source did not compute again; None: as any."""


class FinalModel(_Table):
    """Another model for the final call."""

    backend: tuple[str, ...] = Field(min_length=1)
    backend_model: str | None = None
    api_key_env: str | None = None
    prices: Prices | None = None
    """None: those of the model of the rollouts."""


class Limits(_Table):
    """What one request, and all of them together, may take."""

    body_bytes: int = Field(default=16 << 20, ge=1024)
    requests_at_once: int = Field(default=64, ge=1)
    """Requests being answered; further ones get 429."""
    rollouts_at_once: int = Field(default=64, ge=1)
    """Rollouts open at the source, shared fairly between requests."""
    largest_run: int = Field(default=16_000_000, ge=1)
    """The most tokens that one request may come to generate, by its N, T, β, limits and choices."""
    largest_round: int = Field(default=256, ge=1)
    """The largest N, choices multiplied."""
    deadline: float = Field(default=3600.0, gt=0)
    """Seconds after which a request ends in the best answer so far; a request may only shorten it."""


class ServeConfig(_Table):
    """Everything about the service. Build it with `read_config` to have errors as one sentence."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    """0 takes a free one and says which."""
    model: str | None = None
    """A model in this process: `tiny`, a folder or a hub id."""
    backend: tuple[str, ...] = ()
    """Base URLs of OpenAI-compatible servers to use instead."""
    backend_model: str | None = None
    api_key_env: str | None = None
    """The environment variable that holds the upstream's key."""
    prices: Prices | None = None
    final: FinalModel | None = None
    """Another model for final calls; plain replies (`@single`) are the first model's."""
    device: str | None = None
    """Where a model in this process runs, in the words of torch; None: `cpu`."""
    name: str | None = None
    """What clients call the model; None: its own name."""
    mrsa: dict[str, Any] = Field(default_factory=dict)
    """What a request that asks for nothing runs: `preset` and settings of Markovian RSA."""
    efforts: dict[Effort, dict[str, Any]] = Field(default_factory=dict)
    """What each `reasoning_effort` runs, in place of the built-in ladder."""
    presets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Presets of one's own, which clients choose by name like the bundled ones: `preset`, and settings over it."""
    progress: bool = True
    """Tell a stream how the rounds go, as reasoning."""
    keep_alive: float = Field(10.0, gt=0)
    """Seconds of silence after which a stream gets a comment."""
    drain: float = Field(600.0, ge=0)
    """Seconds that open requests get to end after SIGTERM."""
    store: str | None = None
    """Where jobs are kept: a file (SQLite), `postgresql://…`, or `:memory:`. None: a file of this port, below
    XDG_STATE_HOME (~/.local/state); with port 0, memory."""
    keep_responses: float = Field(7 * 86400.0, ge=0)
    """Seconds for which a stored response is kept after its end, with its rollouts."""
    keep_replies: float = Field(3600.0, ge=0)
    """The same for any other reply: so long a retry gets it, or goes on from what had finished of it."""
    health_check: float = Field(15.0, gt=0)
    """Seconds between two looks at upstreams."""
    limits: Limits = Limits()
    keys: tuple[Key, ...] = ()


def store_of(config: ServeConfig, port: int) -> str:
    """Where the jobs of a service on this port are kept."""
    if config.store is not None:
        return config.store
    if config.port == 0:
        return ":memory:"
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return str(home / "openzaya" / f"serve-{port}.sqlite")


def make_config(values: dict[str, Any]) -> ServeConfig:
    """Settings from plain values; raises ValueError with one sentence that names the value."""
    try:
        return ServeConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{place} is no setting of the service; see docs/serve.md") from None
        shown = "…" if place.startswith("keys") else repr(first["input"])
        raise ValueError(f"{place} is {shown}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def read_config(path: Path | None, **overrides: Any) -> ServeConfig:
    """The settings of a TOML file with some replaced; None leaves one as the file has it.

    Raises ValueError where the file is not TOML or has a setting that cannot be used, OSError where it cannot be read.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
    given = {name: value for name, value in overrides.items() if value is not None}
    if "model" in given:
        values = {name: value for name, value in values.items() if not name.startswith(("backend", "api_key"))}
    if "backend" in given:
        values.pop("model", None)
    config = make_config({**values, **given})
    if config.model is not None and config.backend:
        raise ValueError(
            f"model is {config.model!r} and backend is {config.backend[0]!r}: two sources of tokens; give one of them"
        )
    return config
