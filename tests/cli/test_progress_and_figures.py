from __future__ import annotations

import io

import pytest

from openzaya.cli import figures
from openzaya.cli.progress import LineReport, follow
from openzaya.mrsa import events, make_config

CONFIG = make_config({"candidates": 2, "tails": 1, "rounds": 1, "beta": 100, "tau": 10, "final_tokens": 100})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_are_at_least_ten_seconds_apart_unless_something_ended() -> None:
    clock, lines = Clock(), list[str]()
    report = LineReport("tiny", lines.append, clock)
    report(events.RunStarted(config=CONFIG, task="math", model="tiny", restored=0))
    report(events.RoundStarted(round=0, width=2, limit=100))
    for second in range(1, 26):
        clock.now = float(second)
        report(events.CandidateProgress(round=0, index=0, tokens=2 * second))
    assert len(lines) == 3
    assert lines[1] == "round 0: 0 of 2 done, 1 writing, 20 tokens, 2.0 a second, at most 3 min 10 s left"


def test_only_the_first_failures_are_told() -> None:
    lines: list[str] = []
    report = LineReport("tiny", lines.append, Clock())
    report(events.RunStarted(config=CONFIG, task="math", model="tiny", restored=0))
    report(events.RoundStarted(round=0, width=9, limit=100))
    for index in range(9):
        report(events.CandidateFailed(round=0, index=index, failure="no luck", tokens=0, seconds=1.0))
    assert sum("no luck" in line for line in lines) == 3


def test_without_a_terminal_lines_are_written_and_nothing_with_quiet() -> None:
    stream = io.StringIO()
    with follow("x", "tiny", stream) as on_event:
        assert on_event is not None
        on_event(events.RunStarted(config=CONFIG, task="math", model="tiny", restored=2))
    assert stream.getvalue() == (
        "Markovian RSA with tiny: N 2, C 1, T 1, β 100, τ 10; at most 400 tokens; "
        "2 rollouts are taken from the journal\n"
    )
    with follow("x", "tiny", stream, quiet=True) as on_event:
        assert on_event is None


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min 1 s"),
     (1234, "21 min"), (3600, "1 h"), (7500, "2 h 5 min"), (90000, "25 h")],
)  # fmt: skip
def test_durations_are_said_as_people_say_them(seconds: float, says: str) -> None:
    assert figures.duration(seconds) == says


@pytest.mark.parametrize(
    ("size", "says"), [(640, "640 B"), (9_800_000, "9.8 MB"), (17_680_978_928, "17.7 GB"), (999_600, "1.0 MB")]
)
def test_sizes_are_in_decimal_units(size: int, says: str) -> None:
    assert figures.byte_size(size) == says


def test_long_texts_are_shortened_to_one_harmless_line() -> None:
    assert figures.shortened("a\nb  c", 10) == "a b c"
    assert figures.shortened("0123456789", 5) == "0123…"
    assert figures.shortened("a\x1b[2Jb", 10) == "a�[2Jb"
