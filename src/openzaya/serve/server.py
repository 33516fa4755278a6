"""The process: the backend, the application on its address, and an end that lets open requests finish."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from openzaya.backends.opening import open_backend
from openzaya.serve.app import create_app
from openzaya.serve.config import ServeConfig
from openzaya.serve.keys import ENVIRONMENT_KEY, keyring
from openzaya.serve.service import Service

logger = logging.getLogger(__name__)

OnReady = Callable[[Service, str], None]
"""Told once the address is open, with its URL."""


async def serve(config: ServeConfig, *, on_ready: OnReady | None = None) -> None:
    """Serve until SIGTERM or SIGINT; open requests then get `config.drain` seconds, and a second signal ends them.

    Raises ValueError for settings that cannot be served, BackendError where no upstream answers, and OSError where the
    address is taken.
    """
    keys = keyring(config, os.environ.get(ENVIRONMENT_KEY))
    listener = _listen(config)
    try:
        backend = await open_backend(
            config.model or "tiny",
            config.backend,
            backend_model=config.backend_model,
            api_key=os.environ.get(config.api_key_env) if config.api_key_env else None,
            api_key_env=config.api_key_env,
            device=config.device or "cpu",
        )
        try:
            service = Service(config, backend, keys)
            server = _Server(service, listener, on_ready)
            await server.serve(sockets=[listener])
        finally:
            await backend.aclose()
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """Uvicorn that says when it is ready, and stops taking work at the first signal."""

    def __init__(self, service: Service, listener: socket.socket, on_ready: OnReady | None) -> None:
        config = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(service.config.drain)),
            timeout_keep_alive=75,  # longer than the idle time of common load balancers
        )
        super().__init__(config)
        self._service = service
        self._url = _url(listener)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self._on_ready is not None and not self.should_exit:
            self._on_ready(self._service, self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends."""
        self._service.draining = True
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        logger.info("signal %s: no new work is taken", signal.Signals(sig).name)


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
