"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from openzaya.serve.conversation import Outcome
from openzaya.serve.turns import Turns

_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """The figures of one service, in a registry of their own."""

    def __init__(self, turns: Turns) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "openzaya_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "openzaya_reply_seconds",
            "From a request to the end of its reply.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.left = Counter("openzaya_clients_left", "Clients that left before their reply.", registry=self._registry)
        self.open = Gauge("openzaya_requests_open", "Requests being answered.", registry=self._registry)
        self._tokens = Counter("openzaya_tokens", "Tokens of all rollouts.", ["kind"], registry=self._registry)
        self._rollouts = Counter("openzaya_rollouts", "Rollouts of runs.", ["outcome"], registry=self._registry)
        waiting = Gauge("openzaya_rollouts_waiting", "Rollouts waiting for a place.", registry=self._registry)
        waiting.set_function(lambda: turns.waiting)

    def count(self, outcome: Outcome) -> None:
        """Add what one request came to."""
        usage = outcome.usage
        for kind, tokens in (
            ("prompt", usage.prompt_tokens),
            ("completion", usage.completion_tokens),
            ("cached", usage.cached_tokens),
        ):
            self._tokens.labels(kind).inc(tokens)
        for report in outcome.reports:
            for summary in report["rounds"]:
                self._rollouts.labels("failed").inc(summary["failed"])
                self._rollouts.labels("cut").inc(summary["cut"])
                self._rollouts.labels("ended").inc(summary["candidates"] - summary["failed"] - summary["cut"])

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)
