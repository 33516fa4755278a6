"""Replies that are held to a grammar: which tokens may come next, after a reasoning that is free.

llguidance says what a grammar allows; here is where it begins to count in a reply, and what it does to scores.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openzaya.chat.grammar import check_grammar
from openzaya.chat.tokenizer import Tokenizer

FORBIDDEN = -1e30
"""In place of a score: no chance is left at any temperature, and differences of two such scores stay numbers."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a reply may be."""

    grammar: str
    """In llguidance's dialect of Lark; it counts where no reasoning is open."""
    opens: int | None = None
    """The token with which the reply may begin a reasoning."""
    closes: int | None = None
    """The token that ends it."""
    in_reasoning: bool = False
    """Whether the prompt ends inside one."""
    begun: tuple[int, ...] = ()
    """What the prompt holds of the constrained text already."""


class Grammars:
    """Makes matchers for one vocabulary; from any thread."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        """`vocabulary` is the number of scores, which may be more than tokens. Raises ValueError without llguidance
        and for a tokenizer without an end token."""
        check_grammar('start: "a"')
        from llguidance import LLTokenizer, TokenizerWrapper

        if not tokenizer.eos_ids:
            raise ValueError("the tokenizer names no end token, so no reply can be held to a form")
        self._vocabulary = vocabulary
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), eos_token=sorted(tokenizer.eos_ids))

    def matcher(self, constraint: Constraint) -> Matcher:
        """A reply at its beginning; raises ValueError for a grammar that cannot be held to."""
        from llguidance import LLMatcher

        check_grammar(constraint.grammar)
        state = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(constraint.grammar), log_level=0)
        if not state.consume_tokens(list(constraint.begun)) or state.is_error():
            raise ValueError(f"the reply cannot go on in its form: {state.get_error().splitlines()[0]}")
        return Matcher(state, constraint, self._vocabulary)


class Matcher:
    """Where one reply is in its grammar."""

    def __init__(self, state: Any, constraint: Constraint, vocabulary: int) -> None:
        self._state, self._constraint, self._vocabulary = state, constraint, vocabulary
        self._free = constraint.in_reasoning
        self._may_open = constraint.opens is not None and not constraint.in_reasoning and not constraint.begun
        self.failed = False
        """Whether the grammar became too much for its parser; the reply then has to end where it is."""

    @property
    def holds(self) -> bool:
        """Whether the next token is held to anything."""
        return not self._free and not self.failed

    def copy(self) -> Matcher:
        """Another reply that is as far."""
        other = Matcher(self._state.deep_copy(), self._constraint, self._vocabulary)
        other._free, other._may_open, other.failed = self._free, self._may_open, self.failed
        return other

    def narrowed(self, scores_V: Tensor) -> Tensor:
        """Scores in which tokens that cannot come next have no chance."""
        bits = np.frombuffer(self._state.compute_bitmask(), dtype=np.uint8)
        if self._state.is_error():
            self._fail()
            return scores_V
        allowed = np.zeros(self._vocabulary, dtype=bool)
        known = np.unpackbits(bits, bitorder="little")[: self._vocabulary]
        allowed[: len(known)] = known
        if self._may_open:
            allowed[self._constraint.opens] = True
        return scores_V.masked_fill(torch.from_numpy(~allowed).to(scores_V.device), FORBIDDEN)

    def accept(self, token: int) -> None:
        """Move on by one token, which is not the end."""
        if self._free:
            self._free = token != self._constraint.closes
        elif self._may_open and token == self._constraint.opens:
            self._free = True
        elif not self.failed and not self._state.consume_token(token):
            self._fail()
        self._may_open = False

    def _fail(self) -> None:
        self.failed = True
        _log.warning("a reply ends early, since its form became too complex: %s", self._state.get_error())


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text if isinstance(text, str) else text.decode("utf-8", errors="replace")
        return self._tokenizer.encode(plain, special=False)
