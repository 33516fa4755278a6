"""`openzaya serve`: the reasoning service."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openzaya.cli.exits import say
from openzaya.cli.options import (
    ApiKeyOption,
    BackendModelOption,
    BackendOption,
    DeviceOption,
    ModelOption,
    OfflineOption,
    Source,
    YesOption,
)

if TYPE_CHECKING:
    from openzaya.serve.config import ServeConfig
    from openzaya.serve.service import Service


def serve(
    model: ModelOption = None,
    backend: BackendOption = None,
    backend_model: BackendModelOption = None,
    api_key_env: ApiKeyOption = None,
    device: DeviceOption = None,
    yes: YesOption = False,
    offline: OfflineOption = False,
    host: Annotated[str | None, typer.Option(metavar="HOST", help="Where to listen (default 127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="On which port (default 8000; 0: a free one).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in TOML: keys, limits, the default preset.")
    ] = None,
) -> None:
    """Serve an OpenAI-compatible API that answers with Markovian RSA.

    Ctrl-C or SIGTERM lets open requests end; a second one stops at once. An address that others can reach needs a key:
    set OPENZAYA_API_KEY, or give keys in the configuration file.
    """
    from openzaya.serve.config import read_config
    from openzaya.serve.server import serve as serve_until_stopped

    settings = read_config(
        config,
        model=model,
        backend=tuple(backend) if backend else None,
        backend_model=backend_model,
        api_key_env=api_key_env,
        device=device,
        host=host,
        port=port,
    )
    settings = _with_model_here(settings, yes=yes, offline=offline)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(serve_until_stopped(settings, on_ready=_announce))


def _with_model_here(settings: ServeConfig, *, yes: bool, offline: bool) -> ServeConfig:
    """The same with a model of the hub on this machine, after a download where it is not yet."""
    source = Source.of(
        settings.model, list(settings.backend), settings.backend_model, settings.api_key_env, settings.device
    ).ready(yes=yes, offline=offline)
    if source.hub_id is None:
        return settings
    return settings.model_copy(update={"model": source.model, "name": settings.name or source.hub_id})


def _announce(service: Service, url: str) -> None:
    menu = service.menu
    say(f"openzaya: serving {menu.name} at {url}/v1 (without a choice: {menu.default['preset']})")
    if not service.keyring:
        say("openzaya: without keys, for this machine only")
