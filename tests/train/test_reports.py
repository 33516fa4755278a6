from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from openzaya.train.config import LoggingRecipe
from openzaya.train.curves import Series, line_chart, ticks
from openzaya.train.html_report import html_report
from openzaya.train.reports import StepReport, append_line, boards, curves_of, read_lines


def report(step: int, **changes: object) -> StepReport:
    fields: dict[str, object] = {
        "phase": "plain", "step": step, "steps": 40, "loss": 3.0 / step, "gradient_norm": 1.0, "load_entropy": 0.9,
        "tokens_per_second": 1000.0 + step, "seconds_left": 5.0, "rate": 0.5, "utilisation": 0.25,
        "load_entropies": (0.8, 1.0),
    }  # fmt: skip
    return StepReport(**{**fields, **changes})  # type: ignore[arg-type]


def lines() -> list[dict[str, object]]:
    from dataclasses import asdict

    found = [{**asdict(report(step)), "seconds": 60.0 * step} for step in range(1, 41)]
    return [
        *found,
        {"phase": "plain", "step": 40, "held_out": {"problems": 0.51, "<b>books": 0.72}},
        {"phase": "plain", "step": 7, "note": "back to the weights of step 4 & on"},
    ]


def test_the_page_is_whole_by_itself_and_shows_every_curve() -> None:
    page = html_report("a <run>", lines())  # type: ignore[arg-type]
    assert not re.search(r"(src|href|url)\s*[=(]", page)
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert "a &lt;run&gt;" in page
    assert "<b>books" not in page
    assert "back to the weights of step 4 &amp; on" in page
    for title in ("Loss of a learned token", "Held-out loss of problems", "Held-out loss of &lt;b&gt;books",
                  "Gradient norm", "Learning rate", "Load entropy, mean",
                  "Tokens a second", "Utilisation", "Load entropy by layer, plain"):  # fmt: skip
        assert f"<figcaption>{title}" in page
    assert "<td>40 of 40</td><td>0.0750</td>" in page
    assert "<td>25.0%</td>" in page
    assert "<th>held-out problems</th>" in page
    assert "<td>0.5100</td><td>0.7200</td>" in page
    for chart in re.findall(r"<figure>.*?</figure>", page):
        ElementTree.fromstring(chart)


def test_of_a_step_that_was_done_twice_the_later_line_counts() -> None:
    from dataclasses import asdict

    again = {**asdict(report(40, loss=9.0)), "seconds": 1.0}
    assert "<td>9.0000</td>" in html_report("run", [*lines(), again])  # type: ignore[arg-type]


def test_a_chart_puts_points_where_its_scale_says_and_leaves_out_what_is_no_number() -> None:
    chart = ElementTree.fromstring(line_chart("t", [Series("a", [(0, 0), (5, float("nan")), (10, 100)])], "step"))
    (path,) = [node.attrib["d"] for node in chart[1].iter("path")]
    (first, second) = [tuple(map(float, pair.split())) for pair in path.removeprefix("M").split("L")]
    assert first[0] < second[0]
    assert first[1] > second[1]
    assert line_chart("t", [Series("a", [(0, float("inf"))])], "step") == ""
    long = line_chart("t", [Series("a", [(x, x % 7) for x in range(100_000)])], "step")
    assert len(long) < 20_000


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.93, 0.999), (3.1, 3.1), (0, 0), (-2, 5e9), (1e-4, 2e-4)])
def test_ticks_are_round_even_and_span_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    assert found[0] <= low
    assert found[-1] >= high
    steps = {round((later - earlier) / (found[1] - found[0]), 6) for earlier, later in itertools.pairwise(found)}
    assert steps == {1.0}


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_line(log, {"step": 1})
    with log.open("a") as file:
        file.write('{"step": 2, "lo')
    append_line(log, {"step": 3})
    assert read_lines(log) == [{"step": 1}, {"step": 3}]
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()[::2]] == [1, 3]


def test_a_report_gives_the_curves_of_a_board() -> None:
    assert curves_of(report(2, utilisation=None)) == {
        "loss": 1.5, "gradient_norm": 1.0, "load_entropy": 0.9, "tokens_per_second": 1002.0, "rate": 0.5,
        "load_entropy/layer0": 0.8, "load_entropy/layer1": 1.0,
    }  # fmt: skip


def test_tensorboard_is_written_where_it_is_installed_and_goes_on_where_the_state_is(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((0, 9), (5, 7)):
        (board,) = boards(LoggingRecipe(), tmp_path, "plain", first)
        for step in range(first + 1, last + 1):
            board.add({"loss": first + 1.0 / step}, step)
        board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "plain"), purge_orphaned_data=True)
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 6, 7]


def test_boards_that_nobody_asks_for_are_not_made_and_a_missing_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert boards(LoggingRecipe(tensorboard=False), tmp_path, "plain", 0) == []
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb_project is 'mine' and wandb is not installed; pip install wandb"):
        boards(LoggingRecipe(tensorboard=False, wandb_project="mine"), tmp_path, "plain", 0)


def test_weights_and_biases_gets_the_figures_of_a_run_that_it_knows_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stub:
        def __init__(self) -> None:
            self.asked: list[dict[str, object]] = []
            self.logged: list[tuple[dict[str, float], int]] = []

        def init(self, **given: object) -> Stub:
            self.asked.append(given)
            return self

        def log(self, figures: dict[str, float], step: int) -> None:
            self.logged.append((figures, step))

        def finish(self) -> None:
            self.logged.append(({}, -1))

    stub = Stub()
    monkeypatch.setitem(__import__("sys").modules, "wandb", stub)
    recipe = LoggingRecipe(tensorboard=False, wandb_project="mine")
    for _launch in range(2):
        (board,) = boards(recipe, tmp_path / "run", "plain", 0)
        board.add({"loss": 1.0}, 3)
        board.close()
    assert stub.asked[0] == stub.asked[1]
    assert (stub.asked[0]["id"], stub.asked[0]["resume"]) == ("run-plain", "allow")
    assert stub.logged == [({"loss": 1.0}, 3), ({}, -1)] * 2
