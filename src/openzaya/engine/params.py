"""How one reply is sampled. Free of torch, so that everything above the engine can import it cheaply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one reply.

    Raises ValueError on a value outside its range, naming the value.
    """

    max_tokens: int | None = None
    """Limit of generated tokens; None is whatever the context leaves."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    """Tokens less likely than `min_p` times the likeliest one are dropped."""
    seed: int | None = None
    """With a seed the same request gives the same tokens whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """The reply ends before the first of these strings."""
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    """None: none; 0: of each sampled token; k: also of the k likeliest tokens at each place."""
    echo: bool = False
    """A completion begins with its prompt, of whose tokens but the first `logprobs` then tells too."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be between 0 and 1")
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise ValueError(f"logprobs is {self.logprobs}; it must be between 0 and 20")
