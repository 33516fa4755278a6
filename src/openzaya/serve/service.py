"""What all requests share: the sources, the menu, the turns, who is let in and at what rate, and the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from openzaya.backends.protocol import Backend, Usage
from openzaya.serve.budgets import Budgets
from openzaya.serve.config import Key, Limits, Prices, ServeConfig
from openzaya.serve.conversation import Outcome
from openzaya.serve.errors import ApiError
from openzaya.serve.keys import Keyring
from openzaya.serve.menu import make_menu
from openzaya.serve.metrics import Metrics
from openzaya.serve.store import Store
from openzaya.serve.turns import Share, SharedBackend, Turns


class Service:
    """One running service over open backends, which it does not close."""

    def __init__(
        self,
        config: ServeConfig,
        backend: Backend,
        keyring: Keyring | None = None,
        *,
        final: Backend | None = None,
        store: Store | None = None,
    ) -> None:
        """`final` answers final calls in place of `backend`. Raises ValueError where the default cannot be run."""
        self.config = config
        self.backend = backend
        self.final = final
        self.keyring = keyring or Keyring(config.keys)
        self.menu = make_menu(config, backend.capabilities, str(getattr(backend, "device", "cpu")))
        self.turns = Turns(config.limits.rollouts_at_once)
        self.metrics = Metrics(self.turns)
        self.budgets = Budgets()
        self.store = store or Store()
        self.draining = False
        """No new work is taken; what is open goes on to its end."""
        self.reachable = True
        """Every model can be reached at one upstream at least."""
        self._open: Counter[str | None] = Counter()

    def limits_of(self, key: Key | None) -> Limits:
        """What a request with this key may take."""
        if key is None or key.largest_run is None:
            return self.config.limits
        return self.config.limits.model_copy(update={"largest_run": key.largest_run})

    def shared_backend(self) -> SharedBackend:
        """The sources for one request."""
        return SharedBackend(self.backend, self.turns, self.final)

    def cost(self, usage: Usage, final: Usage) -> float | None:
        """What `usage` costs, of which `final` went to final calls; None without prices."""
        prices = self.config.prices
        if prices is None:
            return None
        of_final = (self.config.final.prices if self.config.final is not None else None) or prices
        return _price(usage, prices) - _price(final, prices) + _price(final, of_final)

    def account(self, key: Key | None, outcome: Outcome | None, share: Share) -> None:
        """Count what a request cost that came to `outcome`, or failed."""
        if outcome is not None:
            self.metrics.count(outcome)
        usage, final = (share.usage, Usage()) if outcome is None else (outcome.usage, outcome.final_usage)
        self.budgets.spend(key, usage.prompt_tokens + usage.completion_tokens)
        self.store.count(
            "" if key is None else key.name,
            datetime.now(UTC).date().isoformat(),
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            self.cost(usage, final) or 0.0,
        )

    @contextmanager
    def admission(self, key: Key | None, *, resumed: bool = False) -> Iterator[None]:
        """A place for one request; raises ApiError (429, 503) where there is none. What is resumed had one before."""
        name = None if key is None else key.name
        if not resumed:
            self._check(key)
        self._open[name] += 1
        self.metrics.open.inc()
        try:
            with self.metrics.seconds.time():
                yield
        finally:
            self._open[name] -= 1
            self.metrics.open.dec()

    def _check(self, key: Key | None) -> None:
        if self.draining:
            raise ApiError(503, "the service is going down; try again", code="draining", headers={"retry-after": "5"})
        most = self.config.limits.requests_at_once
        if self._open.total() >= most:
            raise _too_many(f"{most} requests are being answered, as many as this service takes at once")
        if key is not None and key.requests_at_once is not None and self._open[key.name] >= key.requests_at_once:
            raise _too_many(f"{key.requests_at_once} requests of this key are being answered, as many as it may have")
        self.budgets.admit(key)


def _too_many(said: str) -> ApiError:
    return ApiError(429, f"{said}; try again", code="too_many_requests", headers={"retry-after": "5"})


def _price(usage: Usage, prices: Prices) -> float:
    cached = prices.prompt if prices.cached is None else prices.cached
    computed = usage.prompt_tokens - usage.cached_tokens
    total = computed * prices.prompt + usage.cached_tokens * cached + usage.completion_tokens * prices.completion
    return total / 1e6
