from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from eval_backend import PretendModel
from rich.console import Console

from openzaya.evals import EvalError, Progress, Report, evaluate_named, live_progress, print_report
from openzaya.evals.progress import duration
from openzaya.evals.questions import held_out_questions
from openzaya.evals.sources import Sources, weights_hash
from openzaya.evals.spec import FamilySpec, ModelSpec
from openzaya.problems import families


def model_for(names: list[str], limit: int) -> PretendModel:
    questions = [
        question for family in names for question in held_out_questions(FamilySpec(family=family, count=limit), 0)
    ]
    return PretendModel({question.text: question.problem.answer for question in questions if question.problem})


def test_modes_become_arms_and_the_majority_matches_markovian_rsa() -> None:
    model = model_for(["sorting"], 3)
    report = evaluate_named(
        ["sorting"], backend=model, modes=("single", "majority", "mrsa"), preset="tiny", samples=2, limit=3
    )
    assert [arm.name for arm in report.arms] == [
        "single",
        "greedy",
        "majority",
        "mrsa",
        "mrsa, shuffled tails",
        "mrsa, empty tails",
    ]
    assert report.row("single", "sorting").candidates == (2, 2)
    assert report.arms[2].matches == "mrsa"


def test_a_majority_alone_has_the_samples_it_is_given() -> None:
    report = evaluate_named(["sorting"], backend=model_for(["sorting"], 2), modes=["majority"], samples=5, limit=2)
    assert report.row("majority", "sorting").candidates == (5, 5)


def test_one_problem_alone_is_run_without_shuffled_tails() -> None:
    report = evaluate_named(["sorting"], backend=model_for(["sorting"], 1), modes=["mrsa"], preset="tiny", limit=1)
    assert [arm.name for arm in report.arms] == ["mrsa", "mrsa, empty tails"]


def test_a_file_is_a_benchmark_and_goes_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "Compute 1 + 1.", "answer": 2}) + "\n")
    report = evaluate_named([str(path)], backend=PretendModel({"Compute 1 + 1.": "2"}), samples=4, out=tmp_path / "out")
    assert [(entry.name, entry.kind) for entry in report.benchmarks] == [("mine", "file")]
    assert (tmp_path / "out" / "report.json").exists()


def test_problems_names_all_families() -> None:
    model = model_for(list(families()), 1)
    report = evaluate_named(["problems"], backend=model, limit=1, resamples=100)
    assert [entry.name for entry in report.benchmarks] == list(families())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benches": ["aime"]}, "no benchmark 'aime'; give a path to a .jsonl file, 'problems' for all families, or"),
        ({"benches": []}, "no benchmark is named"),
        ({"benches": ["sorting"], "modes": ["best"]}, r"give some of single, majority, mrsa"),
        ({"benches": ["sorting"], "modes": []}, "give some of"),
        ({"benches": ["sorting"], "limit": 0}, "limit is 0"),
        ({"benches": ["sorting"], "samples": 0}, "samples"),
        ({"benches": ["missing.jsonl"]}, "cannot read the benchmark missing.jsonl"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_named(**options, backend=PretendModel({}))  # type: ignore[arg-type]


def small_report() -> Report:
    model = model_for(["sorting", "sequence"], 3)
    return evaluate_named(
        ["sorting", "sequence"], backend=model, modes=("single", "majority", "mrsa"), preset="tiny", limit=3
    )


def test_tables_are_plain_off_a_terminal_and_drawn_on_one() -> None:
    report = small_report()
    plain, drawn = io.StringIO(), io.StringIO()
    print_report(report, Console(file=plain, width=300))
    print_report(report, Console(file=drawn, width=300, force_terminal=True))
    for text in (plain.getvalue(), drawn.getvalue()):
        assert "mrsa, shuffled tails" in text
        assert "macro" in text
        assert "p = " in text or "p < " in text
    assert "\x1b" not in plain.getvalue()
    assert "│" in drawn.getvalue()


def test_progress_ends_at_its_total_and_never_goes_back() -> None:
    told: list[Progress] = []
    evaluate_named(
        ["sorting"],
        backend=model_for(["sorting"], 3),
        modes=("single", "majority", "mrsa"),
        preset="tiny",
        limit=3,
        on_progress=told.append,
    )
    assert told[-1].done == told[-1].total > 0
    assert told[-1].tokens > 0
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert told[0].left is None


def test_progress_off_a_terminal_is_lines() -> None:
    stream = io.StringIO()
    with live_progress(stream) as show:
        show(Progress("single", 1, 4, 100, 2.0, 6.0))
        show(Progress("single", 2, 4, 200, 2.1, 6.0))
        show(Progress("done", 4, 4, 300, 4.0, 0.0))
    assert stream.getvalue().splitlines() == [
        "single: 1 of 4 rollouts, 50 tokens/s, 6 s left",
        "done: 4 of 4 rollouts, 75 tokens/s, 0 s left",
    ]


def test_durations_read_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 89, 700, 11_100)] == ["0 s", "89 s", "12 min", "3 h 05 min"]


def test_a_model_is_known_by_its_weights(tmp_path: Path) -> None:
    for folder, data in (("one", b"abc"), ("same", b"abc"), ("other", b"abd")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(data)
    hashes = [weights_hash(str(tmp_path / folder)) for folder in ("one", "same", "other")]
    assert hashes[0] == hashes[1] != hashes[2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvalError, match="holds no safetensors file"):
        weights_hash(str(tmp_path / "empty"))
    sources = Sources({"here": ModelSpec(source=str(tmp_path / "one")), "there": ModelSpec(backend=("http://h",))}, {})
    assert sources.identities() == {
        "here": {"source": str(tmp_path / "one"), "weights": hashes[0]},
        "there": {"model": "the model at http://h"},
    }


def test_a_backend_for_no_model_is_refused() -> None:
    with pytest.raises(EvalError, match="'other', no model here"):
        Sources({"main": ModelSpec()}, {"other": PretendModel({})})
