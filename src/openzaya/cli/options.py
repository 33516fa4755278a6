"""Arguments that several verbs share, and the source of tokens that they name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Source:
    """Where tokens come from: a model in this process, or servers."""

    model: str
    urls: tuple[str, ...] = ()
    backend_model: str | None = None
    api_key_env: str | None = None
    api_key: str | None = None

    @classmethod
    def of(
        cls, model: str | None, urls: list[str] | None, backend_model: str | None, api_key_env: str | None
    ) -> Source:
        """The source that the four options name; raises InputError where they contradict each other."""
        if urls and model is not None:
            raise InputError(f"--model {model} and --backend {urls[0]} are two sources of tokens; give one of them")
        for option, value in (("--backend-model", backend_model), ("--api-key-env", api_key_env)):
            if value is not None and not urls:
                raise InputError(f"{option} {value} belongs to a server; give its URL with --backend as well")
        key = None
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise InputError(f"the environment variable {api_key_env} of --api-key-env is not set or empty")
        return cls(model or BUNDLED, tuple(urls or ()), backend_model, api_key_env, key)

    @property
    def name(self) -> str:
        """For people: the model, or the first server."""
        if not self.urls:
            return self.model
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
        )
        try:
            yield backend
        finally:
            await backend.aclose()


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
