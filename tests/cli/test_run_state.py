from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.cli.run_state import RunState, Stage
from openzaya.mrsa import events, make_config

CONFIG = make_config({"candidates": 3, "tails": 2, "rounds": 1, "beta": 100, "tau": 10, "final_tokens": 200})


def started(*, restored: int = 0) -> RunState:
    state = RunState()
    state.observe(events.RunStarted(config=CONFIG, task="math", model="m", restored=restored), 0.0)
    state.observe(events.RoundStarted(round=0, width=3, limit=100), 0.0)
    return state


def progress(index: int, tokens: int, round: int = 0) -> events.CandidateProgress:
    return events.CandidateProgress(round=round, index=index, tokens=tokens)


def finished(
    index: int, answer: str | None, tokens: int, reason: str = "stop", restored: bool = False
) -> events.CandidateFinished:
    return events.CandidateFinished(
        round=0, index=index, answer=answer, tokens=tokens, seconds=1.0, finish_reason=reason, restored=restored
    )


def test_a_candidate_passes_from_waiting_over_writing_to_its_end() -> None:
    state = started()
    place = state.rounds[0].places[1]
    assert place.stage is Stage.WAITING
    state.observe(events.CandidateStarted(round=0, index=1), 0.1)
    assert place.stage is Stage.WRITING
    state.observe(progress(1, 17), 0.2)
    assert (place.tokens, place.ended) == (17, False)
    state.observe(finished(1, "42", 20), 0.3)
    assert (place.stage, place.tokens, place.ended) == (Stage.ANSWERED, 20, True)


@pytest.mark.parametrize(
    ("answer", "reason", "stage"),
    [
        ("42", "stop", Stage.ANSWERED),
        (None, "length", Stage.SILENT),
        ("42", "cut", Stage.CUT),
        (None, "deadline", Stage.CUT),
        (None, "budget", Stage.CUT),
    ],
)
def test_the_end_of_a_candidate_shows_how_it_ended(answer: str | None, reason: str, stage: Stage) -> None:
    state = started()
    state.observe(finished(0, answer, 5, reason), 1.0)
    assert state.rounds[0].places[0].stage is stage


def test_answers_that_say_the_same_share_a_place_and_their_votes() -> None:
    state = started()
    for index, answer in enumerate(["0.5", "7", "1/2"]):
        state.observe(finished(index, answer, 5), 1.0)
    assert state.answers == ["0.5", "7"]
    assert state.rounds[0].votes() == [(0, 2), (1, 1)]


def test_a_failure_keeps_its_tokens_and_its_reason() -> None:
    state = started()
    state.observe(events.CandidateFailed(round=0, index=2, failure="gone", tokens=9, seconds=1.0), 1.0)
    assert (state.rounds[0].places[2].stage, state.tokens, state.failures) == (Stage.FAILED, 9, ["gone"])


def test_the_final_call_is_a_row_of_its_own() -> None:
    state = started()
    state.observe(events.RoundStarted(round=1, width=3, limit=200), 1.0)
    state.observe(events.FinalStarted(limit=200), 2.0)
    state.observe(progress(0, 12, round=2), 2.1)
    state.observe(events.FinalDelta(text="The answer", reasoning=""), 2.2)
    assert state.final is not None
    assert (state.final.tokens, state.final_text) == (12, "The answer")
    assert len(list(state.rows)) == 3


def test_a_candidate_of_a_round_that_has_not_started_is_refused() -> None:
    with pytest.raises(ValueError, match="round 5, which has not started"):
        started().observe(progress(0, 1, round=5), 0.1)


def test_the_speed_is_that_of_the_last_seconds_and_leaves_restored_tokens_out() -> None:
    state = started(restored=1)
    state.observe(finished(0, "42", 5000, restored=True), 0.0)
    assert state.tokens_per_second(0.5) is None
    for second in range(1, 31):
        state.observe(progress(1, 10 * second), float(second))
    assert state.tokens_per_second(30.0) == pytest.approx(10.0)
    assert state.tokens == 5300
    for second in range(31, 45):
        state.observe(progress(1, 300 + 2 * (second - 30)), float(second))
    assert state.tokens_per_second(44.0) == pytest.approx(2.0)


def test_before_any_candidate_has_finished_the_limits_bound_what_is_left() -> None:
    state = started()
    state.observe(progress(0, 40), 1.0)
    outlook = state.outlook(1.0)
    assert outlook is not None
    assert outlook.at_most
    assert outlook.tokens == 60 + 100 + 100 + 3 * 200
    assert outlook.seconds == pytest.approx(860 / 40)


def test_afterwards_finished_candidates_say_how_long_the_others_will_be() -> None:
    state = started()
    state.observe(finished(0, "42", 30), 1.0)
    state.observe(progress(1, 10), 1.0)
    outlook = state.outlook(1.0)
    assert outlook is not None
    assert not outlook.at_most
    assert outlook.tokens == 20 + 30 + 3 * 30


def test_without_limits_and_finished_candidates_nothing_is_foretold() -> None:
    state = RunState()
    config = make_config({"candidates": 2, "tails": 1, "rounds": 0})
    state.observe(events.RunStarted(config=config, task="math", model=None, restored=0), 0.0)
    state.observe(events.RoundStarted(round=0, width=2, limit=None), 0.0)
    assert state.outlook(1.0) is None
    state.observe(finished(0, None, 50), 2.0)
    outlook = state.outlook(2.0)
    assert outlook is not None
    assert outlook.tokens == 50


def test_nothing_is_foretold_of_candidates_that_outrun_all_others() -> None:
    state = RunState()
    config = make_config({"candidates": 2, "tails": 1, "rounds": 0, "final_tokens": 500})
    state.observe(events.RunStarted(config=config, task="math", model=None, restored=0), 0.0)
    state.observe(events.RoundStarted(round=0, width=2, limit=500), 0.0)
    state.observe(finished(0, "42", 50), 1.0)
    state.observe(progress(1, 49), 1.0)
    assert state.outlook(1.0) is not None
    state.observe(progress(1, 60), 2.0)
    assert state.outlook(2.0) is None


def test_an_ended_run_has_no_outlook() -> None:
    state = started()
    state.observe(events.RunFinished(answer="1", finish_reason="budget", completion_tokens=1, seconds=1.0), 1.0)
    assert state.outlook(2.0) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400), st.floats(0, 3)), max_size=60))
def test_whatever_comes_the_figures_stay_sensible(steps: list[tuple[int, int, float]]) -> None:
    state, now = started(), 0.0
    for index, tokens, pause in steps:
        now += pause
        state.observe(progress(index, tokens), now)
        outlook, speed = state.outlook(now), state.tokens_per_second(now)
        assert speed is None or speed > 0
        assert outlook is not None
        assert outlook.tokens >= 3 * 200
        assert outlook.seconds is None or outlook.seconds > 0
