"""Arguments that several verbs share, and the source of tokens that they name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openzaya.cli.exits import InputError

if TYPE_CHECKING:
    from openzaya.backends.protocol import Backend

BUNDLED = "tiny"
_PANEL = "Where tokens come from"

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="DIR|HUB_ID|tiny",
        help="A model to run here: a folder, a hub id such as Zyphra/ZAYA1-8B, or tiny, the bundled one (default).",
        rich_help_panel=_PANEL,
    ),
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="URL",
        help="An OpenAI-compatible server to use instead, such as http://127.0.0.1:8000/v1. Repeat it for several.",
        rich_help_panel=_PANEL,
    ),
]
BackendModelOption = Annotated[
    str | None,
    typer.Option(
        "--backend-model",
        metavar="NAME",
        help="The server's name of the model; not needed where it serves only one.",
        rich_help_panel=_PANEL,
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key-env",
        metavar="VAR",
        help="The environment variable that holds the server's key.",
        rich_help_panel=_PANEL,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cpu|cuda",
        help="Where a model here runs, as torch calls it: cpu (default), or cuda for a GPU of NVIDIA or AMD.",
        rich_help_panel=_PANEL,
    ),
]
YesOption = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Ask nothing before a large download.", rich_help_panel=_PANEL),
]
OfflineOption = Annotated[
    bool,
    typer.Option("--offline", help="Ask the hub nothing: only models that are here.", rich_help_panel=_PANEL),
]


@dataclass(frozen=True, slots=True)
class Source:
    """Where tokens come from: a model in this process, or servers."""

    model: str
    urls: tuple[str, ...] = ()
    backend_model: str | None = None
    api_key_env: str | None = None
    api_key: str | None = None
    device: str = "cpu"
    hub_id: str | None = None
    """What `model` is the folder of, where it came from the hub."""

    @classmethod
    def of(
        cls,
        model: str | None,
        urls: list[str] | None,
        backend_model: str | None,
        api_key_env: str | None,
        device: str | None = None,
    ) -> Source:
        """The source that the options name; raises InputError where they contradict each other."""
        if urls and model is not None:
            raise InputError(f"--model {model} and --backend {urls[0]} are two sources of tokens; give one of them")
        for option, value in (("--backend-model", backend_model), ("--api-key-env", api_key_env)):
            if value is not None and not urls:
                raise InputError(f"{option} {value} belongs to a server; give its URL with --backend as well")
        if urls and device is not None:
            raise InputError(f"--device {device} is for a model in this process; a server has its own, leave it out")
        key = None
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise InputError(f"the environment variable {api_key_env} of --api-key-env is not set or empty")
        return cls(model or BUNDLED, tuple(urls or ()), backend_model, api_key_env, key, device or "cpu")

    def ready(self, *, yes: bool, offline: bool, quiet: bool = False) -> Source:
        """The same with a model that is on this machine, after a download where it is one of the hub.

        Raises ValueError where it cannot be had, and typer.Exit where the person declines.
        """
        if self.urls:
            return self
        folder = hub_model_folder(self.model, yes=yes, offline=offline, quiet=quiet, device=self.device)
        return self if folder is None else replace(self, model=folder, hub_id=self.model)

    @property
    def name(self) -> str:
        """For people: the model, or the first server."""
        if not self.urls:
            return self.hub_id or self.model
        others = f" and {len(self.urls) - 1} more" if len(self.urls) > 1 else ""
        return f"{self.backend_model or 'the model'} at {_without_credentials(self.urls[0])}{others}"

    def for_api(self) -> dict[str, Any]:
        """The same as arguments of `openzaya.solve`."""
        return {
            "model": self.model,
            "backend": self.urls or None,
            "backend_model": self.backend_model,
            "api_key": self.api_key,
            "api_key_env": self.api_key_env,
            "device": self.device,
        }

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Backend]:
        """The backend, ready to be asked. Raises ValueError or BackendError."""
        from openzaya.backends.opening import open_backend

        backend = await open_backend(
            self.model,
            self.urls,
            backend_model=self.backend_model,
            api_key=self.api_key,
            api_key_env=self.api_key_env,
            device=self.device,
        )
        try:
            yield backend
        finally:
            await backend.aclose()


def hub_model_folder(model: str, *, yes: bool, offline: bool, quiet: bool = False, **finding: Any) -> str | None:
    """The folder of a model of the hub, on this machine from now on; None for any other model.

    `finding` are options of `find_weights`. Raises as `Source.ready` does.
    """
    # Everything else is left to whoever runs it; bundled models and folders have no slash or exist.
    if model.count("/") != 1 or Path(model).expanduser().exists():
        return None
    from openzaya.cli.journey import follow_journey
    from openzaya.engine.weights import find_weights

    with follow_journey(yes=yes, quiet=quiet) as journey:
        return str(find_weights(model, journey=journey, offline=offline, **finding))


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
