from __future__ import annotations

import io

import pytest
from rich.console import Console

from openzaya.cli.grid import draw_run
from openzaya.cli.run_state import RunState
from openzaya.mrsa import events, make_config

QUESTION = "Compute 40 + 2."


def drawn(state: RunState, *, width: int = 90, now: float = 10.0, colours: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colours, color_system="truecolor" if colours else None
    )
    console.print(draw_run(state, QUESTION, "tiny", now, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def a_run(candidates: int = 4, rounds: int = 2) -> RunState:
    state = RunState()
    config = make_config(
        {"candidates": candidates, "tails": 2, "rounds": rounds, "beta": 100, "tau": 10, "final_tokens": 100}
    )
    state.observe(events.RunStarted(config=config, task="math", model="tiny", restored=0), 0.0)
    state.observe(events.RoundStarted(round=0, width=candidates, limit=100), 0.0)
    return state


def finish(state: RunState, index: int, answer: str | None, *, round: int = 0, reason: str = "stop") -> None:
    state.observe(
        events.CandidateFinished(round=round, index=index, answer=answer, tokens=50, seconds=1.0, finish_reason=reason),
        float(index + 1),
    )


def row(picture: str, label: str) -> str:
    """The row of the grid that begins with a label."""
    return next(line for line in picture.splitlines() if line.strip("│ ").startswith(label + " "))


def test_before_the_run_it_says_what_is_awaited() -> None:
    assert drawn(RunState()) == "◌ getting tiny ready\n"


def test_the_grid_has_a_mark_for_every_state() -> None:
    state = a_run(candidates=6)
    finish(state, 0, "42")
    finish(state, 1, None, reason="length")
    finish(state, 2, None, reason="cut")
    state.observe(events.CandidateFailed(round=0, index=3, failure="gone", tokens=0, seconds=1.0), 5.0)
    state.observe(events.CandidateProgress(round=0, index=4, tokens=99), 6.0)
    assert "● ○ ✂ ✗ █ ·" in row(drawn(state), "0")


def test_a_growing_bar_shows_how_far_a_candidate_is() -> None:
    state = a_run()
    for index, tokens in enumerate([0, 30, 60, 500]):
        state.observe(events.CandidateProgress(round=0, index=index, tokens=tokens), 1.0)
    assert "▁ ▃ ▅ █" in row(drawn(state), "0")


def test_the_bar_is_full_a_quarter_above_the_longest_candidate_that_finished() -> None:
    state = a_run()
    finish(state, 0, "42")
    for index, tokens in enumerate([30, 50, 62], start=1):
        state.observe(events.CandidateProgress(round=0, index=index, tokens=tokens), 1.0)
    assert "● ▄ ▇ █" in row(drawn(state), "0")


def test_votes_stand_beside_the_round_with_the_mark_of_their_answer() -> None:
    state = a_run()
    for index, answer in enumerate(["7", "42", "42", "42"]):
        finish(state, index, answer)
    line = row(drawn(state), "0")
    assert "● ◆ ◆ ◆" in line
    assert "◆ 42 ×3  ● 7 ×1" in line
    assert "200" in line


def test_an_answer_keeps_its_colour_through_the_rounds() -> None:
    state = a_run()
    for index in range(4):
        finish(state, index, "7" if index else "42")
    state.observe(events.RoundStarted(round=1, width=4, limit=100), 5.0)
    finish(state, 0, "42.0", round=1)
    assert "●" in row(drawn(state), "1")


def test_rounds_to_come_are_shown_with_their_width() -> None:
    assert "· · · ·" in row(drawn(a_run()), "2")


def test_below_the_grid_stand_tokens_speed_and_the_time_left() -> None:
    state = a_run()
    state.observe(events.CandidateProgress(round=0, index=0, tokens=50), 10.0)
    assert "50 tokens · 5.0 a second · 10 s · at most 3 min 50 s left" in drawn(state)


def test_the_reply_of_a_final_call_is_shown_while_it_streams() -> None:
    state = a_run(rounds=0)
    state.observe(events.RoundFinished(round=0, votes={}, failed=0, cut=0, completion_tokens=9, seconds=1.0), 2.0)
    state.observe(events.FinalStarted(limit=100), 2.0)
    for piece in ("All agree\n", "that it is ", "\x1b[31m42"):
        state.observe(events.FinalDelta(text=piece), 3.0)
    picture = drawn(state)
    assert "that it is �[31m42" in picture
    assert "final" in picture


@pytest.mark.parametrize(
    ("reason", "answer", "says"),
    [
        ("answered", "42", "✓ answered 42 after 12 s and 345 tokens"),
        ("deadline", None, "■ ended by its deadline, no answer after 12 s and 345 tokens"),
        ("budget", "42", "■ ended by its budget, 42 after 12 s and 345 tokens"),
    ],
)
def test_the_last_picture_says_how_it_ended(reason: str, answer: str | None, says: str) -> None:
    state = a_run()
    state.observe(events.RunFinished(answer=answer, finish_reason=reason, completion_tokens=345, seconds=12.0), 12.0)
    assert says in drawn(state)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("candidates", [1, 4, 32])
def test_it_fits_every_terminal(width: int, candidates: int) -> None:
    state = a_run(candidates=max(candidates, 2))
    for index in range(max(candidates, 2)):
        finish(state, index, f"a rather long answer number {index} that no column can hold")
    lines = drawn(state, width=width).splitlines()
    assert all(len(line) <= min(width, 100) for line in lines)
    assert len(lines) < 24, "it would scroll a small terminal"


def test_a_question_cannot_steer_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(draw_run(a_run(), "evil \x1b]0;title\x07 [red]question[/red]", "tiny", 1.0, 80))
    assert isinstance(console.file, io.StringIO)
    picture = console.file.getvalue()
    assert "\x1b" not in picture
    assert "[red]question[/red]" in picture
