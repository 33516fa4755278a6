from __future__ import annotations

import asyncio

import pytest
from scripted_backend import Script, ScriptedBackend, always, in_turn

from openzaya.backends.protocol import Usage
from openzaya.mrsa import FinalRequest, make_config, run
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.selection import best_so_far, choose, count_votes, read_answer, unanimous


def candidate(
    index: int, answer: str | None, text: str = "text", finish_reason: str = "stop", round: int = 0
) -> Candidate:
    return Candidate(
        round=round,
        index=index,
        seed=index,
        finish_reason=finish_reason,
        usage=Usage(),
        started=0.0,
        seconds=1.0,
        content=text,
        answer=answer,
        failure="gone" if finish_reason == "failed" else None,
    )


def failed(index: int) -> Candidate:
    return candidate(index, None, "", "failed")


def test_an_answer_of_more_than_half_wins_and_its_shortest_text_is_returned() -> None:
    pool = [
        candidate(0, "4", "long text"),
        candidate(1, "5"),
        candidate(2, "4", "short"),
        candidate(3, "4.0", "longer text"),
    ]
    assert choose(pool, "auto", 0) is pool[2]
    assert count_votes(pool) == {"4": 3, "5": 1}


def test_a_reply_that_was_cut_speaks_only_where_no_whole_one_holds_the_answer() -> None:
    cut, whole, longer = candidate(0, "4", "4", "budget"), candidate(1, "4", "four."), candidate(2, "4", "It is four.")
    assert choose([cut, longer, whole], "majority", 0) is whole
    assert best_so_far([[cut, longer]]) == ([cut, longer], longer)
    assert choose([cut, candidate(3, "4", "long text", "length")], "majority", 0) is cut


def test_half_is_not_more_than_half_and_failures_count_against_the_answer() -> None:
    assert choose([candidate(0, "4"), candidate(1, "4"), candidate(2, "5"), candidate(3, None)], "auto", 0) is None
    assert choose([candidate(0, "4"), candidate(1, "4"), failed(2), failed(3)], "auto", 0) is None
    assert choose([candidate(0, "4"), candidate(1, "4"), candidate(2, "4"), failed(3)], "auto", 0) is not None


def test_no_answer_never_wins() -> None:
    pool = [candidate(0, None), candidate(1, None), candidate(2, None), candidate(3, "7")]
    assert choose(pool, "auto", 0) is None
    assert choose(pool, "majority", 0) is pool[3]
    assert count_votes(pool) == {"7": 1}


def test_majority_breaks_ties_to_the_earliest_and_falls_back_to_the_first_that_wrote_anything() -> None:
    pool = [candidate(0, "1"), candidate(1, "2"), candidate(2, "2"), candidate(3, "1")]
    assert choose(pool, "majority", 0) is pool[0]
    nothing = [failed(0), candidate(1, None, ""), candidate(2, None, "words")]
    assert choose(nothing, "majority", 0) is nothing[2]


def test_random_is_uniform_over_candidates_that_wrote_something_and_fixed_by_the_seed() -> None:
    pool = [candidate(0, "1"), failed(1), candidate(2, None, " "), candidate(3, "2")]
    chosen = [choose(pool, "random", seed) for seed in range(200)]
    assert {c.index for c in chosen if c is not None} == {0, 3}
    assert 70 < sum(c is pool[0] for c in chosen) < 130
    assert choose(pool, "random", 5) is choose(pool, "random", 5)


def test_final_always_asks_for_a_final_call() -> None:
    assert choose([candidate(0, "1")], "final", 0) is None


def test_unanimity_needs_every_candidate() -> None:
    assert unanimous([candidate(0, "1"), candidate(1, "1.0")])
    assert not unanimous([candidate(0, "1"), failed(1)])
    assert not unanimous([candidate(0, "1"), candidate(1, None)])
    assert not unanimous([])


def test_the_best_so_far_is_the_latest_round_with_an_answer() -> None:
    early = [candidate(0, "1"), candidate(1, "1")]
    late = [candidate(0, None, round=1), candidate(1, None, "", "deadline", round=1)]
    assert best_so_far([early, late]) == (early, early[0])
    assert best_so_far([[candidate(0, None, "words")], late])[1] is late[0]
    assert best_so_far([]) == ((), None)


def test_a_reply_that_did_not_end_by_itself_answers_only_with_a_box() -> None:
    assert read_answer("The answer is 4", "stop", "math") == "4"
    assert read_answer("The answer is 4", "length", "math") is None
    assert read_answer("So \\boxed{4", "cut", "math") is None
    assert read_answer("So \\boxed{42}. To check", "length", "math") == "42"
    assert read_answer("", "stop", "math") is None


QUESTION = "Compute 17 + 25."
TOOLS = ({"type": "function", "function": {"name": "add"}},)


def boxed(answer: int) -> Script:
    return Script(reasoning="r", content=f"\\boxed{{{answer}}}")


def solve(backend: ScriptedBackend, final: FinalRequest | None = None, **values: object):
    config = make_config({"candidates": 4, "tails": 2, "rounds": 1, "beta": 60, "tau": 20, "task": "math", **values})
    return asyncio.run(run(QUESTION, config, backend, final=final))


@pytest.mark.parametrize(
    "final",
    [
        FinalRequest(tools=TOOLS, tool_choice="auto"),
        FinalRequest(response_format={"type": "json_object"}),
        FinalRequest(stop=("END",)),
    ],
)
@pytest.mark.parametrize("select", ["auto", "majority", "random"])
def test_tools_a_response_format_or_stop_force_a_final_call_and_reach_no_rollout(
    final: FinalRequest, select: str
) -> None:
    backend = ScriptedBackend(always(boxed(42)))
    solution = solve(backend, final, select=select)
    assert solution.final is not None
    *rollouts, last = [call.params for call in backend.calls]
    assert len(rollouts) == 8
    assert all((params.tools, params.response_format, params.stop) == ((), None, ()) for params in rollouts)
    assert (last.tools, last.response_format, last.stop) == (final.tools, final.response_format, final.stop)


def test_auto_asks_once_more_where_no_answer_holds_more_than_half() -> None:
    backend = ScriptedBackend(in_turn(*[boxed(0)] * 4, boxed(1), boxed(1), boxed(2), boxed(3), boxed(99)))
    solution = solve(backend)
    assert len(backend.calls) == 9
    assert (solution.answer, solution.text) == ("99", "\\boxed{99}")
    assert solution.votes == {"1": 2, "2": 1, "3": 1}
    assert solution.final is not None
    assert len(solution.final.tails_read) == 2
    assert [summary.round for summary in solution.rounds] == [0, 1]
    assert solution.usage.completion_tokens > sum(summary.completion_tokens for summary in solution.rounds)


def test_a_single_rollout_is_returned_as_it_is_whatever_it_holds() -> None:
    for script in (boxed(1), Script(reasoning="thinking"), Script(content="no idea")):
        backend = ScriptedBackend(always(script))
        solution = solve(backend, candidates=1, tails=1, rounds=0, select="majority")
        assert len(backend.calls) == 1
        assert solution.text == script.content
