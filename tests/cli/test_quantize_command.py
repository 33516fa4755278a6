"""quantize, and what the other verbs do with its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from openzaya.cli import byte_progress

Program = Callable[..., Result]


@pytest.mark.parametrize(("options", "scheme", "group"), [([], "w4", 32), (["--scheme", "w8"], "w8", None)])
def test_a_checkpoint_is_quantised_and_says_into_what(
    openzaya_program: Program, tiny_model: Path, tmp_path: Path, options: list[str], scheme: str, group: int | None
) -> None:
    result = openzaya_program("quantize", tiny_model, tmp_path / "q", *options, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["scheme"], facts["group"], facts["destination"]) == (scheme, group, str(tmp_path / "q"))
    assert facts["bytes"] == (tmp_path / "q" / "model.safetensors").stat().st_size < facts["source_bytes"]
    assert facts["seconds"] > 0
    assert (tmp_path / "q" / "tokenizer.json").exists()


def test_without_json_the_outcome_is_one_line_on_standard_error(
    openzaya_program: Program, tiny_model: Path, tmp_path: Path
) -> None:
    result = openzaya_program("quantize", tiny_model, tmp_path / "q", "--group", "32")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{tmp_path / 'q'}: w4 in groups of 32, " in result.stderr
    assert " of weights where 232 kB were, in " in result.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scheme", "w3"], "--scheme and --group: scheme is 'w3'; it is w4 or w8"),
        (["--group", "64"], "--scheme and --group: group is 64; w4 has groups of 32 or 128 columns"),
        (["--scheme", "w8", "--group", "32"], "--scheme and --group: group is 32, but w8 has one scale a row"),
        (["--group", "128"], "has 32 columns, which groups of 128 do not divide; use groups of 32 or the scheme w8"),
    ],
)
def test_wrong_settings_are_refused_and_nothing_is_written(
    openzaya_program: Program, tiny_model: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    result = openzaya_program("quantize", tiny_model, tmp_path / "q", *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(
    openzaya_program: Program, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openzaya.model.quantised import quantise

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantise, "replace_metadata", interrupted)
    result = openzaya_program("quantize", tiny_model, tmp_path / "q")
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_the_other_verbs_take_a_quantised_folder(openzaya_program: Program, tiny_model: Path, tmp_path: Path) -> None:
    assert openzaya_program("quantize", tiny_model, tmp_path / "q").exit_code == 0
    shown = openzaya_program("info", tmp_path / "q")
    assert shown.exit_code == 0
    assert "w4 in groups of 32" in shown.stdout
    stored = json.loads(openzaya_program("info", tmp_path / "q", "--json").stdout)["stored"]
    assert stored["scheme"] == "w4"
    assert stored["bytes"] == pytest.approx((tmp_path / "q" / "model.safetensors").stat().st_size, rel=0.4)
    plain = openzaya_program("convert", tmp_path / "q", tmp_path / "plain")
    assert plain.exit_code == 0, plain.stderr
    solved = openzaya_program(
        "solve", "Compute 17 + 25 - 9.", "--model", tmp_path / "q", "--preset", "single", "--final-tokens", 8, "--json"
    )
    assert solved.exit_code in (0, 4), solved.stderr
    assert json.loads(solved.stdout)["usage"]["completion_tokens"] > 0


def test_where_there_is_no_terminal_a_line_comes_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 5.0, 12.0, 15.0])
    show = byte_progress._lines("writing q", lambda: next(times))
    for done in (1, 2, 3):
        show(done * 10**9, 4 * 10**9)
    assert capsys.readouterr().err == "writing q: 2.0 GB of 4.0 GB, about 12 s left\n"
