"""Markovian RSA end to end over HTTP: what reaches the server, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fake_openai import Failure, FakeServer, Reply, Request, WordTokenizer
from openzaya.backends.openai import OpenAIBackend
from openzaya.mrsa import MrsaConfig, Solution, run

PROBLEM = "What is $\\frac{84}{2}$? {Mind the braces.}"
TAU = 12
CONFIG = MrsaConfig(candidates=4, tails=2, rounds=2, beta=400, tau=TAU, final_tokens=400, select="majority", seed=7)


def reasoning_of(request: Request) -> str:
    """A long chain of thought, different for every request, with layout worth keeping."""
    return "\n".join(f"  step {step}:\thalf of {84 + step} é ({request.index})" for step in range(12))


def thinker(request: Request) -> Reply:
    return Reply(reasoning=reasoning_of(request), content="The answer is \\boxed{42}.")


def solve(
    server: FakeServer, config: MrsaConfig = CONFIG, on_event: Callable[[Any], None] | None = None, **settings: Any
) -> Solution:
    async def use() -> Solution:
        backend = OpenAIBackend([server.url], "fake", **{"backoff": 0.01, **settings})
        try:
            return await run(PROBLEM, config, backend, on_event=on_event)
        finally:
            await backend.aclose()

    return asyncio.run(use())


def last_tokens(words: WordTokenizer, text: str, count: int) -> str:
    return words.decode(words.encode(text)[-count:])


@pytest.mark.parametrize(
    ("style", "token_ids", "tokenize", "exactness"),
    [
        ("reasoning", True, "vllm", "ids"),
        ("think_tags", True, "vllm", "ids"),
        ("prompt_opened", False, "llamacpp", "tokenize"),
        ("reasoning_content", False, "sglang", "tokenize"),
        ("think_tags", False, "vllm", "tokenize"),
    ],
)
def test_tails_are_exactly_the_last_tokens_of_the_reasoning(
    style: Any, token_ids: bool, tokenize: Any, exactness: str
) -> None:
    vendor = {"sglang": "fake"}.get(tokenize, tokenize)
    opened = style == "prompt_opened"
    server = FakeServer(
        thinker, style=style, vendor=vendor, token_ids=token_ids, tokenize=tokenize, template_opens_thinking=opened
    )
    with server:
        solution = solve(server)
        later = server.requests[CONFIG.candidates :]
        assert len(later) == 2 * CONFIG.candidates
        for request in later:
            earlier = [other for other in server.requests if other.index < request.index]
            whole = [last_tokens(server.tokenizer, reasoning_of(other), TAU) for other in earlier]
            longer = [last_tokens(server.tokenizer, reasoning_of(other), TAU + 1) for other in earlier]
            assert sum(tail in request.prompt for tail in whole) == CONFIG.tails
            assert not any(tail in request.prompt for tail in longer)
            assert request.prompt.count(PROBLEM) == 1
    assert (solution.answer, solution.exactness, solution.finish_reason) == ("42", exactness, "answered")


def test_without_any_tokenizer_tails_are_converted_and_the_result_says_so() -> None:
    with FakeServer(thinker) as server:
        solution = solve(server)
        for request in server.requests[CONFIG.candidates :]:
            assert any(reasoning_of(other)[-8:] in request.prompt for other in server.requests)
    assert solution.exactness == "ratio"


def test_prompts_are_bounded_by_question_and_tails_however_long_the_thoughts() -> None:
    words = WordTokenizer()
    overhead = []
    for tau in (4, 32, 64):
        with FakeServer(thinker, tokenize="vllm") as server:
            solve(server, CONFIG.model_copy(update={"tau": tau}))
            longest = max(len(words.encode(request.prompt)) for request in server.requests)
        overhead.append(longest - len(words.encode(PROBLEM)) - CONFIG.tails * tau)
    assert max(overhead) < 600
    assert max(overhead) - min(overhead) < 40


def test_every_rollout_has_a_seed_of_its_own_and_the_run_repeats_with_the_same_ones() -> None:
    seeds = []
    for _ in range(2):
        with FakeServer(thinker, tokenize="vllm") as server:
            solve(server)
            seeds.append(sorted(request.body["seed"] for request in server.requests))
    assert len(set(seeds[0])) == 3 * CONFIG.candidates
    assert seeds[0] == seeds[1]


def test_usage_is_the_sum_of_what_the_server_reported() -> None:
    with FakeServer(thinker) as server:
        solution = solve(server)
        words = server.tokenizer
        spoken = [
            len(words.encode(f"<think></think>{reasoning_of(r)}The answer is \\boxed{{42}}.")) + 1
            for r in server.requests
        ]
        asked = [sum(len(words.encode(m["content"])) for m in r.messages) for r in server.requests]
    assert solution.usage.completion_tokens == sum(spoken)
    assert solution.usage.prompt_tokens == sum(asked)


def test_a_rollout_that_keeps_failing_costs_its_retries_and_not_the_run() -> None:
    broken: list[int] = []

    def script(request: Request) -> Reply | Failure:
        if not broken:
            broken.append(request.body["seed"])
        return Failure(status=500) if request.body["seed"] in broken else thinker(request)

    with FakeServer(script, tokenize="vllm") as server:
        solution = solve(server, retries=2)
        assert sum(request.body["seed"] == broken[0] for request in server.requests) == 3
        assert len(server.requests) == 3 * CONFIG.candidates + 2
    assert solution.answer == "42"
    assert [summary.failed for summary in solution.rounds] == [1, 0, 0]


def test_a_thought_cut_at_its_limit_still_gives_its_tail() -> None:
    config = CONFIG.model_copy(update={"beta": 40, "rounds": 1})
    with FakeServer(thinker, tokenize="vllm") as server:
        solve(server, config)
        spoken = last_tokens(server.tokenizer, reasoning_of(server.requests[0]), 10_000)
        cut = server.tokenizer.decode(server.tokenizer.encode(spoken)[:39])
        assert any(last_tokens(server.tokenizer, cut, TAU) in request.prompt for request in server.requests[4:])


def test_cancelling_a_run_reaches_every_open_request() -> None:
    with FakeServer(Reply(reasoning="one two three four", stall_after=3), tokenize="vllm") as server:

        async def use() -> None:
            backend = OpenAIBackend([server.url], "fake")
            task = asyncio.create_task(run(PROBLEM, CONFIG, backend))
            while len(server.requests) < CONFIG.candidates:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(server.wait_until, lambda server: len(server.aborts) == CONFIG.candidates)
            await backend.aclose()

        asyncio.run(use())
        assert len(server.requests) == CONFIG.candidates


def test_stragglers_are_cut_at_their_source_and_their_tails_are_read() -> None:
    def script(request: Request) -> Reply:
        if request.index == 3:
            return Reply(reasoning=reasoning_of(request), stall_after=30)
        return thinker(request)

    config = CONFIG.model_copy(update={"rounds": 1, "tails": 4, "quorum": 3})
    with FakeServer(script, tokenize="vllm") as server:
        solution = solve(server, config)
        server.wait_until(lambda server: len(server.aborts) == 1)
        assert server.aborts[0].index == 3
        written = server.tokenizer.decode(server.tokenizer.encode(reasoning_of(server.requests[3]))[:28])
        assert all(last_tokens(server.tokenizer, written, TAU) in request.prompt for request in server.requests[4:])
    assert solution.rounds[0].cut == 1


def test_a_deadline_closes_what_is_open_and_returns() -> None:
    with FakeServer(Reply(reasoning="one two three four", stall_after=3), tokenize="vllm") as server:
        solution = solve(server, CONFIG.model_copy(update={"deadline": 0.5}))
        server.wait_until(lambda server: len(server.aborts) == CONFIG.candidates)
    assert solution.finish_reason == "deadline"
