"""The process: the backend, the application on its address, and an end that lets open requests finish."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from openzaya.backends.openai import OpenAIBackend
from openzaya.backends.opening import open_backend
from openzaya.backends.protocol import Backend
from openzaya.serve.app import create_app
from openzaya.serve.config import FinalModel, ServeConfig, store_of
from openzaya.serve.database import StoreError
from openzaya.serve.jobs import Jobs
from openzaya.serve.keys import ENVIRONMENT_KEY, keyring
from openzaya.serve.service import Service
from openzaya.serve.store import Store

logger = logging.getLogger(__name__)

OnReady = Callable[[Service, str], None]
"""Told once the address is open, with its URL."""


async def serve(config: ServeConfig, *, on_ready: OnReady | None = None) -> None:
    """Serve until SIGTERM or SIGINT; open requests then get `config.drain` seconds, and a second signal ends them.

    What runs without a client stops then, and goes on when a service opens the same store. Raises ValueError for
    settings that cannot be served and a store that cannot be used, BackendError where no upstream answers, and OSError
    where the address is taken.
    """
    keys = keyring(config, os.environ.get(ENVIRONMENT_KEY))
    listener = _listen(config)
    async with AsyncExitStack() as closing:
        closing.callback(listener.close)
        backend = await open_backend(
            config.model or "tiny",
            config.backend,
            backend_model=config.backend_model,
            api_key=_secret(config.api_key_env),
            api_key_env=config.api_key_env,
            device=config.device or "cpu",
        )
        closing.push_async_callback(backend.aclose)
        final = None if config.final is None else await _open_final(config.final)
        if final is not None:
            closing.push_async_callback(final.aclose)
        try:
            service = Service(config, backend, keys, final=final, store=Store(store_of(config, config.port)))
            app = create_app(service)
            closing.push_async_callback(app.state.jobs.aclose)
            await app.state.jobs.open(app.state.resume)
        except StoreError as error:
            raise ValueError(str(error)) from None
        watching = asyncio.create_task(watch_upstreams(service))
        closing.callback(watching.cancel)
        await _Server(service, app, listener, on_ready).serve(sockets=[listener])


async def _open_final(config: FinalModel) -> Backend:
    return await open_backend(
        "",
        config.backend,
        backend_model=config.backend_model,
        api_key=_secret(config.api_key_env),
        api_key_env=config.api_key_env,
    )


def _secret(variable: str | None) -> str | None:
    return os.environ.get(variable) if variable else None


async def watch_upstreams(service: Service) -> None:
    """Keep `service.reachable` true to what upstreams answer, as long as it is not cancelled."""
    several: tuple[Any, ...] = (service.backend, service.final)
    sources = [source for source in several if isinstance(source, OpenAIBackend)]
    while sources:
        await asyncio.sleep(service.config.health_check)
        answers = await asyncio.gather(*(source.any_answers() for source in sources))
        if service.reachable != all(answers):
            service.reachable = all(answers)
            logger.warning("upstreams %s", "answer again" if service.reachable else "do not answer")


class _Server(uvicorn.Server):
    """Uvicorn that says when it is ready, and stops taking work at the first signal."""

    def __init__(self, service: Service, app: Starlette, listener: socket.socket, on_ready: OnReady | None) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(service.config.drain)),
            timeout_keep_alive=75,  # longer than the idle time of common load balancers
        )
        super().__init__(config)
        self._service = service
        self._jobs: Jobs = app.state.jobs
        self._url = _url(listener)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self._on_ready is not None and not self.should_exit:
            self._on_ready(self._service, self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends."""
        if not self._service.draining:
            self._service.draining = True
            asyncio.get_running_loop().call_soon_threadsafe(self._suspend)
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        logger.info("signal %s: no new work is taken", signal.Signals(sig).name)

    def _suspend(self) -> None:
        """Let go of what runs without a client: the next service goes on with it."""
        self._suspending = asyncio.ensure_future(self._jobs.suspend())


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host.strip("[]"), config.port))
    except OSError as error:
        listener.close()
        where = f"{config.host}:{config.port}"
        raise OSError(
            error.errno, f"cannot listen there ({error.strerror}); give another --port or --host", where
        ) from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
