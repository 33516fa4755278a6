"""What all requests share: the source, the menu, the turns, who is let in, and whether new work is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from openzaya.backends.protocol import Backend
from openzaya.serve.config import Key, Limits, ServeConfig
from openzaya.serve.errors import ApiError
from openzaya.serve.keys import Keyring
from openzaya.serve.menu import make_menu
from openzaya.serve.metrics import Metrics
from openzaya.serve.turns import SharedBackend, Turns


class Service:
    """One running service over an open backend, which it does not close."""

    def __init__(self, config: ServeConfig, backend: Backend, keyring: Keyring | None = None) -> None:
        """Raises ValueError where the configured default cannot be run."""
        self.config = config
        self.backend = backend
        self.keyring = keyring or Keyring(config.keys)
        self.menu = make_menu(config, backend.capabilities, str(getattr(backend, "device", "cpu")))
        self.turns = Turns(config.limits.rollouts_at_once)
        self.metrics = Metrics(self.turns)
        self.draining = False
        """No new work is taken; what is open goes on to its end."""
        self._open: Counter[str | None] = Counter()

    def limits_of(self, key: Key | None) -> Limits:
        """What a request with this key may take."""
        if key is None or key.largest_run is None:
            return self.config.limits
        return self.config.limits.model_copy(update={"largest_run": key.largest_run})

    def shared_backend(self) -> SharedBackend:
        """The source for one request."""
        return SharedBackend(self.backend, self.turns)

    @contextmanager
    def admission(self, key: Key | None) -> Iterator[None]:
        """A place for one request; raises ApiError (429, 503) where there is none."""
        name = None if key is None else key.name
        if self.draining:
            raise ApiError(503, "the service is going down; try again", code="draining", headers={"retry-after": "5"})
        most = self.config.limits.requests_at_once
        if self._open.total() >= most:
            raise _too_many(f"{most} requests are being answered, as many as this service takes at once")
        if key is not None and key.requests_at_once is not None and self._open[name] >= key.requests_at_once:
            raise _too_many(f"{key.requests_at_once} requests of this key are being answered, as many as it may have")
        self._open[name] += 1
        self.metrics.open.inc()
        try:
            with self.metrics.seconds.time():
                yield
        finally:
            self._open[name] -= 1
            self.metrics.open.dec()


def _too_many(said: str) -> ApiError:
    return ApiError(429, f"{said}; try again", code="too_many_requests", headers={"retry-after": "5"})
