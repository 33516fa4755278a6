from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from scripted_backend import Script, ScriptedBackend, always, by_seed, in_turn

from openzaya.backends.protocol import ChatParams, Message
from openzaya.mrsa import ConfigError, Controls, FinalRequest, MrsaConfig, MrsaError, Solution, make_config, run
from openzaya.mrsa import events as ev
from openzaya.mrsa.draws import derive_seed
from openzaya.mrsa.prompts import bundled_prompts

QUESTION = "Compute 17 + 25."


def settings(**values: object) -> MrsaConfig:
    small = {"candidates": 4, "tails": 2, "rounds": 2, "beta": 60, "tau": 20, "final_tokens": 90, "task": "math"}
    return make_config({**small, **values})


def solve(backend: ScriptedBackend, config: MrsaConfig | None = None, problem: object = QUESTION, **more) -> Solution:
    return asyncio.run(run(problem, config or settings(), backend, **more))  # type: ignore[arg-type]


def boxed(answer: object, reasoning: str = "thinking", **more: object) -> Script:
    return Script(reasoning=reasoning, content=f"It is \\boxed{{{answer}}}.", **more)  # type: ignore[arg-type]


def is_aggregation(call) -> bool:
    return call.prompt != QUESTION


# ---- the algorithm


def test_t_aggregation_rounds_follow_round_0_and_each_has_n_candidates() -> None:
    backend = ScriptedBackend(always(boxed(42)))
    solution = solve(backend)
    assert len(backend.calls) == 3 * 4
    assert [summary.candidates for summary in solution.rounds] == [4, 4, 4]
    assert [is_aggregation(call) for call in backend.calls] == [False] * 4 + [True] * 8
    assert solution.answer == "42"
    assert solution.votes == {"42": 4}
    assert solution.finish_reason == "answered"


def test_token_limits_are_beta_until_the_last_round_and_final_there() -> None:
    backend = ScriptedBackend(by_seed(["1", "2", "3", "4", "5"]))
    solve(backend, settings(select="final"))
    assert [call.params.max_tokens for call in backend.calls] == [60] * 8 + [90] * 5


def test_rollouts_and_the_final_call_have_their_own_sampling_and_every_seed_is_distinct() -> None:
    backend = ScriptedBackend(always(boxed(1)))
    solve(backend, settings(select="final", seed=5, final_min_p=0.1, force_answer=9))
    *rollouts, final = [call.params for call in backend.calls]
    assert {(params.temperature, params.top_p, params.top_k) for params in rollouts} == {(1.0, 1.0, 0)}
    assert (final.temperature, final.top_p, final.top_k, final.min_p) == (0.6, 0.95, 40, 0.1)
    assert [params.force_answer for params in (*rollouts, final)] == [0] * 8 + [9] * 5
    expected = [derive_seed(5, round, index) for round in range(3) for index in range(4)] + [derive_seed(5, 3, 0)]
    assert [call.params.seed for call in backend.calls] == expected
    assert len(set(expected)) == len(expected)


def test_the_last_round_may_be_narrower_and_then_nothing_more_is_called() -> None:
    backend = ScriptedBackend(always(boxed(7)))
    solution = solve(backend, settings(final_n=1, select="random"))
    assert [summary.candidates for summary in solution.rounds] == [4, 4, 1]
    assert len(backend.calls) == 9
    assert solution.answer == "7"


def numbered(messages: Sequence[Message], params: ChatParams) -> Script:
    """Each reply's reasoning ends in a mark of its own, longer than a tail in front."""
    return Script(reasoning="x" * 40 + f" mark {params.seed:020d}"[-20:], content="no answer")


def marks_in(prompt: str) -> list[int]:
    return [int(mark) for mark in re.findall(r"\d{15,}", prompt)]


def test_each_candidate_reads_c_tails_of_the_round_before_and_nothing_else() -> None:
    backend = ScriptedBackend(numbered)
    solution = solve(backend, settings(select="majority", candidates=6, tails=3))
    by_round = [backend.calls[start : start + 6] for start in (0, 6, 12)]
    for before, after in pairwise(by_round):
        seeds = [f"{call.params.seed:020d}"[-20:] for call in before]
        for call in after:
            read = re.findall(r"\[\d\]\n(.*)", call.prompt)
            assert len(read) == 3
            assert len(set(read)) == 3
            assert set(read) <= set(seeds)
    for round, candidates in enumerate(solution.candidates):
        for candidate in candidates:
            assert len(candidate.tails_read) == (3 if round else 0)


def test_the_subsets_are_uniform_over_many_seeds() -> None:
    counts: Counter[int] = Counter()
    for seed in range(60):
        solution = solve(ScriptedBackend(numbered), settings(select="majority", rounds=1, seed=seed))
        counts.update(place for candidate in solution.candidates[1] for place in candidate.tails_read)
    assert sum(counts.values()) == 60 * 4 * 2
    assert all(85 <= counts[place] <= 155 for place in range(4))


def test_with_c_1_candidate_i_continues_from_its_own_tail() -> None:
    backend = ScriptedBackend(numbered)
    solution = solve(backend, settings(tails=1, select="majority"))
    assert [candidate.tails_read for candidate in solution.candidates[2]] == [(0,), (1,), (2,), (3,)]
    for index, call in enumerate(backend.calls[4:8]):
        assert call.prompt.endswith(f"\n\n{backend.calls[index].params.seed:020d}"[-20:])
        assert "earlier attempt" in call.prompt


def test_with_c_1_a_candidate_without_a_tail_starts_from_the_question_again() -> None:
    backend = ScriptedBackend(in_turn(boxed(1), Script(fails_after=0), boxed(1)))
    solution = solve(backend, settings(tails=1, rounds=1))
    assert [candidate.tails_read for candidate in solution.candidates[1]] == [(0,), (), (2,), (3,)]
    assert backend.calls[5].prompt == QUESTION


def test_with_fewer_usable_tails_than_c_all_are_read() -> None:
    blank = Script(reasoning="  \n", content=" \n")
    backend = ScriptedBackend(in_turn(boxed(1), blank, blank, boxed(2), boxed(3)))
    solution = solve(backend, settings(tails=3, rounds=1))
    assert {frozenset(candidate.tails_read) for candidate in solution.candidates[1]} == {frozenset({0, 3})}


def test_every_prompt_is_bounded_by_the_question_c_tau_and_a_constant() -> None:
    backend = ScriptedBackend(always(Script(reasoning="é{{x}}" * 200, content="y" * 500, finish_reason="length")))
    solve(backend, settings(beta=2000, tau=50, tails=4, select="final"))
    bound = len(QUESTION) + 4 * 50 + len(bundled_prompts().fixed_text("math", 4))
    assert all(len(call.prompt.encode()) <= bound for call in backend.calls)
    assert max(len(call.prompt.encode()) for call in backend.calls) >= bound - 8


def test_a_trace_that_hit_its_limit_is_a_candidate_like_any_other() -> None:
    backend = ScriptedBackend(always(Script(reasoning="r" * 500)))
    solution = solve(backend, settings(select="majority"))
    assert {candidate.finish_reason for round in solution.candidates for candidate in round} == {"length"}
    assert all("r" * 20 in call.prompt for call in backend.calls[4:])
    assert solution.rounds[0].cut == solution.rounds[0].failed == 0
    assert solution.answer is None
    assert solution.finish_reason == "answered"


def test_the_system_prompt_and_earlier_turns_reach_every_rollout() -> None:
    backend = ScriptedBackend(always(boxed(1)))
    earlier = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    solve(backend, problem=[*earlier, {"role": "assistant", "content": "hello"}, {"role": "user", "content": QUESTION}])
    assert all(list(call.messages[:2]) == earlier for call in backend.calls)
    assert all(QUESTION in call.prompt for call in backend.calls)


def test_an_empty_problem_is_refused() -> None:
    with pytest.raises(ConfigError, match="problem is empty"):
        solve(ScriptedBackend(always(boxed(1))), problem=" \n")


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    def prompts(seed: int) -> list[str]:
        backend = ScriptedBackend(by_seed(["1", "2", "3"]))
        solve(backend, settings(seed=seed, select="majority"))
        return [call.prompt for call in backend.calls]

    assert prompts(1) == prompts(1) != prompts(2)


# ---- context


def test_a_context_that_is_too_small_is_refused_before_anything_is_generated() -> None:
    backend = ScriptedBackend(always(boxed(1)), context=200)
    with pytest.raises(ConfigError, match=r"context of 200 tokens is too small.*2·20"):
        solve(backend)
    assert backend.calls == []


def test_the_last_round_gets_what_the_context_leaves() -> None:
    backend = ScriptedBackend(always(boxed(1, reasoning="t" * 30)), context=500)
    solve(backend, settings(final_tokens=5000))
    assert all(call.params.max_tokens == 60 for call in backend.calls[:8])
    for call in backend.calls[8:]:
        assert 60 < call.params.max_tokens < 500
        assert len(call.prompt.encode()) + call.params.max_tokens <= 500


# ---- failures


def test_a_partial_failure_is_tolerated_counted_and_never_an_answer() -> None:
    failing = boxed(13, reasoning="bad " * 5, fails_after=5)
    backend = ScriptedBackend(in_turn(failing, *[boxed(4)] * 11))
    solution = solve(backend)
    assert [summary.failed for summary in solution.rounds] == [1, 0, 0]
    failed = solution.candidates[0][0]
    assert failed.failed
    assert failed.answer is None
    assert failed.tail is None
    assert failed.failure == "the server went away"
    assert not any("bad" in call.prompt for call in backend.calls)
    assert failed.usage.completion_tokens > 0
    assert solution.usage.completion_tokens == sum(summary.completion_tokens for summary in solution.rounds)


def test_below_the_minimum_the_run_ends_with_the_first_cause() -> None:
    backend = ScriptedBackend(in_turn(boxed(1), Script(fails_after=0)))
    with pytest.raises(MrsaError, match=r"only 1 of 4 candidates of round 0.*at least 2.*the server went away"):
        solve(backend, settings(minimum=2))
    assert len(backend.calls) == 4
    assert backend.open_now == 0


def test_an_error_that_is_not_the_sources_own_passes_through_and_closes_every_stream() -> None:
    def broken(messages, params) -> Script:
        if len(backend.calls) == 3:
            raise KeyError("bug")
        return boxed(1, stalls_after=0)

    backend = ScriptedBackend(broken)
    with pytest.raises(KeyError):
        solve(backend)
    assert backend.open_now == 0


def test_where_the_final_call_fails_the_largest_group_answers_unless_there_are_demands() -> None:
    def script() -> ScriptedBackend:
        return ScriptedBackend(in_turn(boxed(1), boxed(1), boxed(2), boxed(3), Script(fails_after=0)))

    config = settings(rounds=0, tails=2)
    solution = solve(script(), config)
    assert (solution.answer, solution.finish_reason) == ("1", "answered")
    assert solution.final is not None
    assert solution.final.failed
    with pytest.raises(MrsaError, match="final aggregation failed: the server went away"):
        solve(script(), config, final=FinalRequest(response_format={"type": "json_object"}))


# ---- stragglers, budgets, cancellation


@pytest.mark.parametrize("quorum", [3, 0.75])
def test_a_quorum_cuts_stragglers_and_what_they_wrote_still_gives_their_tails(quorum: float) -> None:
    straggler = boxed(9, reasoning="slow but useful thought", stalls_after=2)
    backend = ScriptedBackend(in_turn(boxed(1), straggler, *[boxed(1)] * 12))
    solution = solve(backend, settings(quorum=quorum, rounds=1, tails=4))
    cut = solution.candidates[0][1]
    assert cut.finish_reason == "cut"
    assert cut.answer is None
    assert cut.tail is not None
    assert cut.tail.text == "slow but usefu"
    assert solution.rounds[0].cut == 1
    assert cut.usage.completion_tokens == 14
    assert all("slow but usefu" in call.prompt for call in backend.calls[4:])
    assert backend.calls[1].closed
    assert not backend.calls[1].ended


def test_the_last_round_waits_for_all_whatever_the_quorum() -> None:
    backend = ScriptedBackend(in_turn(*[boxed(1)] * 5, boxed(1, pause=0.01), boxed(1)))
    solution = solve(backend, settings(quorum=1, rounds=1))
    assert solution.rounds[1].cut == 0
    assert solution.votes == {"1": 4}


def test_a_deadline_ends_in_the_best_answer_so_far() -> None:
    stalled = Script(reasoning="for ever", stalls_after=1)
    backend = ScriptedBackend(in_turn(boxed(8), boxed(8), boxed(9), boxed(7), stalled))
    solution = solve(backend, settings(deadline=1.5))
    assert (solution.answer, solution.finish_reason) == ("8", "deadline")
    assert solution.votes == {"8": 2, "9": 1, "7": 1}
    assert solution.rounds[1].cut == 4
    assert solution.usage.completion_tokens > solution.rounds[0].completion_tokens
    assert solution.seconds < 5
    assert backend.open_now == 0


def test_a_token_budget_counts_while_streaming_and_ends_in_the_best_answer_so_far() -> None:
    endless = Script(reasoning="on and on " * 1000)
    backend = ScriptedBackend(in_turn(*[boxed(5)] * 4, endless))
    solution = solve(backend, settings(max_total_tokens=300, beta=100_000))
    assert (solution.answer, solution.finish_reason) == ("5", "budget")
    assert 300 <= solution.usage.completion_tokens <= 300 + 4 * 7 * 4
    assert backend.open_now == 0


def test_a_budget_holds_for_a_source_that_counts_nothing_along() -> None:
    backend = ScriptedBackend(always(Script(reasoning="word " * 2000)), ids=False, tokenize=False, usage=False)
    solution = solve(backend, settings(max_total_tokens=200, beta=100_000))
    assert solution.finish_reason == "budget"
    assert 150 <= solution.usage.completion_tokens <= 260
    assert (solution.answer, solution.text) == (None, "")


def test_a_budget_that_ends_with_the_last_round_still_answers_where_no_call_is_needed() -> None:
    whole = solve(ScriptedBackend(always(boxed(5))))
    solution = solve(ScriptedBackend(always(boxed(5))), settings(max_total_tokens=whole.usage.completion_tokens))
    assert (solution.answer, solution.finish_reason) == ("5", "answered")


def test_a_deadline_in_the_final_call_falls_back_to_the_votes() -> None:
    final = Script(content="Almost there", stalls_after=1, piece=6)
    backend = ScriptedBackend(in_turn(boxed(1), boxed(1), boxed(2), boxed(3), final))
    solution = solve(backend, settings(rounds=0, deadline=1.5))
    assert (solution.answer, solution.finish_reason) == ("1", "deadline")
    no_votes = ScriptedBackend(in_turn(*[Script(reasoning="hm")] * 4, final))
    assert solve(no_votes, settings(rounds=0, deadline=1.5)).text == "Almost"


def test_cancelling_the_run_closes_every_open_stream() -> None:
    backend = ScriptedBackend(always(boxed(1, stalls_after=1)))

    async def cancelled() -> None:
        task = asyncio.create_task(run(QUESTION, settings(), backend))
        while backend.open_now < 4:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(cancelled())
    assert backend.open_now == 0
    assert [call.closed for call in backend.calls] == [True] * 4


def test_a_listener_that_fails_leaves_no_stream_open_behind_it() -> None:
    backend = ScriptedBackend(always(boxed(1, reasoning="a long thought")))

    def failing(event: ev.Event) -> None:
        if isinstance(event, ev.CandidateProgress):
            raise RuntimeError("the screen is gone")

    async def inside() -> None:
        with pytest.raises(RuntimeError, match="the screen is gone"):
            await run(QUESTION, settings(), backend, on_event=failing)
        assert backend.open_now == 0

    asyncio.run(inside())


def test_concurrency_bounds_the_open_streams_and_cuts_reach_those_that_wait() -> None:
    backend = ScriptedBackend(always(boxed(1, pause=0.001)))
    solve(backend, settings(concurrency=2))
    assert backend.open_most == 2
    stalling = ScriptedBackend(always(boxed(1, stalls_after=0)))
    solution = solve(stalling, settings(concurrency=1, deadline=0.5))
    assert solution.rounds[0].cut == 4
    assert len(stalling.calls) == 1


def test_unanimity_stops_early_only_where_asked() -> None:
    agreeing = ScriptedBackend(always(boxed(3)))
    solution = solve(agreeing, settings(stop_on_unanimity=True))
    assert len(agreeing.calls) == 4
    assert (solution.answer, solution.votes) == ("3", {"3": 4})
    dissent = ScriptedBackend(in_turn(boxed(2), boxed(3)))
    solve(dissent, settings(stop_on_unanimity=True))
    assert len(dissent.calls) == 8


# ---- counting


def test_tokens_are_the_sources_count_and_else_counted_along() -> None:
    assert solve(ScriptedBackend(always(boxed(1)))).usage.prompt_tokens == 120
    assert solve(ScriptedBackend(always(boxed(1)))).usage.cached_tokens == 36
    expected = 12 * len("thinkingIt is \\boxed{1}.")
    for offers in ({"usage": True}, {"usage": False}, {"usage": False, "ids": False, "tokens": True}):
        assert solve(ScriptedBackend(always(boxed(1)), **offers)).usage.completion_tokens == expected
    tokenized = ScriptedBackend(always(boxed(1)), usage=False, ids=False)
    assert solve(tokenized).usage.completion_tokens == expected


@pytest.mark.parametrize(
    ("offers", "exactness"),
    [
        ({}, "ids"),
        ({"ids": False}, "tokenize"),
        ({"ids": False, "tokenize": False}, "ratio"),
    ],
)
def test_the_solution_names_how_exactly_tails_were_cut(offers: dict, exactness: str) -> None:
    assert solve(ScriptedBackend(always(boxed(1)), **offers)).exactness == exactness


def test_a_run_that_reads_no_tails_has_no_exactness() -> None:
    assert solve(ScriptedBackend(always(boxed(1))), settings(rounds=0)).exactness == "none"


# ---- controls


def test_empty_tails_keep_the_prompt_and_leave_the_tails_blank() -> None:
    own, empty = ScriptedBackend(numbered), ScriptedBackend(numbered)
    first = solve(own, settings(select="majority"))
    second = solve(empty, settings(select="majority"), controls=Controls(tail_source="empty"))
    assert empty.calls[4].prompt == QUESTION + bundled_prompts().fixed_text("math", 2)
    assert [c.tails_read for c in first.candidates[1]] == [c.tails_read for c in second.candidates[1]]


def test_shuffled_tails_stand_in_the_same_places() -> None:
    foreign = [[f"foreign {round}.{place}" for place in range(4)] for round in range(2)]
    backend = ScriptedBackend(numbered)
    controls = Controls(tail_source="shuffled", foreign_tails=foreign)
    solution = solve(backend, settings(select="final"), controls=controls)
    for round in (1, 2):
        for candidate, call in zip(solution.candidates[round], backend.calls[4 * round : 4 * round + 4], strict=True):
            shown = [foreign[round - 1][place] for place in candidate.tails_read]
            assert call.prompt.endswith("\n\n".join(f"[{i}]\n{tail}" for i, tail in enumerate(shown, 1)))
    assert "foreign 1." in backend.calls[-1].prompt
    with pytest.raises(ConfigError, match="foreign_tails lacks"):
        solve(backend, controls=Controls(tail_source="shuffled"))


def test_arms_can_share_a_finished_round_0() -> None:
    first = solve(ScriptedBackend(numbered), settings(select="majority"))
    backend = ScriptedBackend(numbered)
    second = solve(backend, settings(select="majority"), controls=Controls(first_round=first.candidates[0]))
    assert len(backend.calls) == 8
    assert second.candidates[0] == first.candidates[0]
    assert second.usage == first.usage
    with pytest.raises(ConfigError, match="first_round has the candidates"):
        solve(backend, controls=Controls(first_round=first.candidates[0][:3]))
    with pytest.raises(ConfigError, match="a tail of 20 tokens and τ is 10"):
        solve(backend, settings(tau=10), controls=Controls(first_round=first.candidates[0]))


# ---- events


def test_the_events_tell_the_whole_run_in_order() -> None:
    told: list[ev.Event] = []
    backend = ScriptedBackend(in_turn(Script(fails_after=0), boxed(1), boxed(2), boxed(3), boxed(4)), tokens=True)
    solution = solve(backend, settings(rounds=0, select="auto"), on_event=told.append)
    kinds = [type(event) for event in told]
    assert kinds[:2] == [ev.RunStarted, ev.RoundStarted]
    assert kinds[-1] is ev.RunFinished
    assert kinds.index(ev.RoundFinished) < kinds.index(ev.FinalStarted) < kinds.index(ev.FinalDelta)
    counts = Counter(kinds)
    assert (counts[ev.CandidateFailed], counts[ev.CandidateFinished]) == (1, 4)
    assert counts[ev.CandidateProgress] >= 3
    (finished,) = [event for event in told if isinstance(event, ev.RoundFinished)]
    assert (finished.votes, finished.failed) == ({"1": 1, "2": 1, "3": 1}, 1)
    text = "".join(event.text for event in told if isinstance(event, ev.FinalDelta))
    assert text == solution.text == "It is \\boxed{4}."
