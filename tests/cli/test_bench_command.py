"""bench: the options, what is printed, what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from openzaya.cli import bench
from openzaya.mrsa import preset
from openzaya.serve.load import Settings

Program = Callable[..., Result]


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openzaya.bench.subject.PROBE_BYTES", 1 << 20)


def test_decode_prints_one_object_and_keeps_the_same(
    openzaya_program: Program, tiny_model: Path, tmp_path: Path
) -> None:
    result = openzaya_program(
        "bench", "decode", tiny_model, "--scheme", "w8", "--rows", "1,2", "--prompt", 16, "--repeats", 1,
        "--threads", 1, "--json", "--save", tmp_path / "figures.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "figures.json").read_text())
    assert report["benchmark"] == "decode"
    assert (report["model"]["executor"], report["model"]["scheme"]) == ("compiled core", "w8")
    assert [row["rows"] for row in report["decode"]] == [1, 2]
    assert report["settings"]["prompt"] == 16
    assert report["command"].startswith(f"openzaya bench decode {tiny_model} --scheme w8 --rows 1,2 ")


def test_decode_prints_a_table_with_the_probe(openzaya_program: Program, tiny_model: Path) -> None:
    result = openzaya_program("bench", "decode", tiny_model, "--rows", "1", "--prompt", 16, "--repeats", 1)
    assert result.exit_code == 0, result.stderr
    for word in ("torch", "probe: a read of 1 MiB", "GB/s", "share of bandwidth", "a prompt of 16 tokens"):
        assert word in result.stdout


def test_rollouts_print_what_sharing_saves(openzaya_program: Program, tiny_model: Path) -> None:
    result = openzaya_program(
        "bench", "rollouts", tiny_model, "--rollouts", 3, "--prompt", 40, "-N", 4, "-C", 2, "--tau", 8,
        "--repeats", 1, "--no-solve", "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "3 rollouts of a prompt of 40 tokens" in result.stdout
    assert "a round of N 4, C 2, 40 tokens a prompt" in result.stdout


def test_train_measures_our_step_beside_transformers_from_the_same_weights(
    openzaya_program: Program, tmp_path: Path
) -> None:
    result = openzaya_program(
        "bench", "train", "tiny", "--rows", 1, "--row", 24, "--repeats", 1, "--threads", 1, "--json",
        "--save", tmp_path / "figures.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "figures.json").read_text())
    cases = report["cases"]
    assert list(cases) == ["openzaya", "transformers ZAYA", "transformers Llama"]
    assert cases["openzaya"]["first_loss"] == pytest.approx(cases["transformers ZAYA"]["first_loss"], rel=1e-5)
    assert cases["openzaya"]["parameters"] == cases["transformers ZAYA"]["parameters"]
    took = cases["transformers ZAYA"]["seconds_by_backend"]
    assert took[f"{cases['transformers ZAYA']['experts']}, {cases['transformers ZAYA']['attention']}"] == min(
        took.values()
    )
    ours, theirs = (cases[name]["tokens_a_second"]["median"] for name in ("openzaya", "transformers ZAYA"))
    assert cases["transformers ZAYA"]["openzaya_times_faster"]["median"] == pytest.approx(ours / theirs, rel=1e-2)
    assert 0 < report["utilisation"]["median"] < 1.5


def test_train_alone_prints_a_table(openzaya_program: Program) -> None:
    result = openzaya_program(
        "bench", "train", "tiny", "--rows", 1, "--row", 16, "--repeats", 1, "--threads", 1, "--no-peers",
        "--activation-checkpointing",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    for word in ("tiny in float32, 1 rows of 16", "openzaya", "tokens/s", "the matmul peak of this run"):
        assert word in result.stdout
    assert "transformers" not in result.stdout


def test_train_refuses_a_shape_that_is_unknown(openzaya_program: Program) -> None:
    result = openzaya_program("bench", "train", "huge")
    assert result.exit_code == 2
    assert "the shape 'huge' is unknown; there are small, tiny, zaya1-8b, zaya1-74b" in result.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rows", "one"], "--rows is 'one'; give whole numbers"),
        (["--rows", "0"], "rows are (0,); they must be 1 or more"),
        (["--scheme", "w3"], "--scheme and --group: scheme is 'w3'"),
        (["--prompt", "2000"], "beyond the model's context of 1024"),
        (["--kv-dtype", "int8"], "belong to the compiled core"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(
    openzaya_program: Program, tiny_model: Path, options: list[str], says: str
) -> None:
    result = openzaya_program("bench", "decode", tiny_model, *options)
    assert result.exit_code == 2
    assert says in result.stderr


def test_where_there_is_no_terminal_progress_comes_every_ten_seconds_with_what_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([0.0, 5.0, 12.0, 15.0])
    show = bench._lines("decode", lambda: next(times))
    for done in (1, 2, 3):
        show(done, 6, "16 rows")
    assert capsys.readouterr().err == "decode: 2 of 6 measurements, about 24 s left; next: 16 rows\n"


def test_a_figure_is_shown_with_its_spread() -> None:
    assert bench.spread({"median": 1234.5, "low": 0.123, "high": 2000.0}) == "1,234 [0.12, 2,000]"
    assert bench.spread(None) == "-"


def test_orchestrate_is_by_default_the_load_that_it_is_named_for() -> None:
    load = Settings()
    config = preset(load.preset)
    assert (load.jobs, load.chunks, config.candidates, config.rounds) == (64, 512, 16, 2)
    assert load.rollouts == 64 * (3 * 16 + 1)


def test_orchestrate_tells_what_the_service_costs(openzaya_program: Program, tmp_path: Path) -> None:
    kept = tmp_path / "orchestrate.json"
    small = ["--jobs", 2, "--preset", "light", "--chunks", 6]
    result = openzaya_program("bench", "orchestrate", *small, "--save", kept)
    report = json.loads(kept.read_text())
    assert (report["rollouts"], report["chunks"]) == (2 * 25, 2 * 25 * 6)
    for figure in ("microseconds_a_chunk", "milliseconds_a_rollout", "times_reading_alone", "cpu_seconds"):
        assert report[figure] > 0
    assert report["milliseconds_a_rollout"] == pytest.approx(6e-3 * report["microseconds_a_chunk"])
    assert report["memory"]["tokens_of_tails_a_job"] == 8 * 6
    assert report["memory"]["bytes_in_the_store_a_job"] > 0
    assert "2 requests of the preset light: 50 rollouts of 6 pieces" in result.stdout
    assert "48 tokens" in result.stdout
