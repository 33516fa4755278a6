"""convert, info and train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Program = Callable[..., Result]

RECIPE = """
seed = 3
[mixture]
arithmetic_chain = { difficulty = [1, 3] }
[[phases]]
name = "plain"
tokens = 100_000
batch_tokens = 10_000
"""


# ---- convert ----


def test_a_checkpoint_goes_to_the_legacy_layout_and_back_unchanged(
    openzaya_program: Program, tiny_model: Path, tmp_path: Path
) -> None:
    legacy, native = tmp_path / "legacy", tmp_path / "native"
    there = openzaya_program("convert", tiny_model, legacy, "--layout", "legacy", "--max-shard-size", "100kB")
    back = openzaya_program("convert", legacy, native, "--layout", "native")
    assert (there.exit_code, back.exit_code) == (0, 0), there.stderr + back.stderr
    assert there.stdout == ""
    shards = len(list(legacy.glob("*.safetensors")))
    assert shards > 1
    assert f"legacy layout, 233 kB of weights in {shards} files" in there.stderr
    assert (native / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert (native / "tokenizer.json").exists()


def test_weights_are_rewritten_in_another_dtype(openzaya_program: Program, tiny_model: Path, tmp_path: Path) -> None:
    result = openzaya_program("convert", tiny_model, tmp_path / "half", "--dtype", "bfloat16")
    assert result.exit_code == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layout", "sideways"], "--layout is 'sideways'; it is native or legacy"),
        (["--dtype", "float8"], "dtype is 'float8'"),
        (["--max-shard-size", "huge"], "--max-shard-size is 'huge'; give a size such as"),
    ],
)
def test_wrong_settings_of_a_conversion_are_refused(
    openzaya_program: Program, tiny_model: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    result = openzaya_program("convert", tiny_model, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_no_model_is_refused(openzaya_program: Program, tmp_path: Path) -> None:
    result = openzaya_program("convert", tmp_path, tmp_path / "out")
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr


# ---- info ----


def test_info_gives_the_published_figures_of_the_big_model(openzaya_program: Program) -> None:
    values = json.loads(openzaya_program("info", "zaya1-8b", "--json").stdout)
    assert values["sizes"]["total"] == 8_840_489_464
    assert values["sizes"]["key_value_bytes_per_token"] == 40_960
    assert values["machine"]["cores"] >= 1
    assert values["machine"]["bytes_per_second"] > 1e8
    ways = {(each["scheme"], each["group"]): each for each in values["here"]}
    assert list(ways) == [("bfloat16", None), ("w8", None), ("w4", 32), ("w4", 128)]
    assert all(each["tokens_a_second"] > 0 for each in ways.values())


def test_info_reads_a_folder_and_prints_a_table(openzaya_program: Program, tiny_model: Path) -> None:
    result = openzaya_program("info", tiny_model)
    assert result.exit_code == 0
    for word in ("4 a layer", "1,024 tokens", "what fits here, and how fast", "cores", "state a token"):
        assert word in result.stdout


def test_info_names_what_it_cannot_find(openzaya_program: Program) -> None:
    result = openzaya_program("info", "/nowhere/at/all")
    assert result.exit_code == 2
    assert "'/nowhere/at/all' is no model folder" in result.stderr
    assert "zaya1-74b" in result.stderr


def test_info_says_what_fits_and_that_its_speed_is_an_estimate(openzaya_program: Program) -> None:
    text = " ".join(openzaya_program("info", "zaya1-8b").stdout.split())
    for word in ("w4, groups of 128", "17.7 GB", "room for", "about ", "is an estimate", "bench decode"):
        assert word in text


# ---- train ----


def test_a_dry_run_prints_the_resolved_recipe_and_the_plan(openzaya_program: Program, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    result = openzaya_program("train", recipe, "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["recipe"]["seed"] == 3
    assert values["recipe"]["optimizer"]["clip"] == 1.0, "defaults are spelled out"
    assert values["plan"]["folder"] == "runs/small"
    (phase,) = values["plan"]["phases"]
    about = phase["outline"]
    assert (about["name"], about["start"], about["steps"], about["tokens"]) == ("plain", "scratch", 10, 100_000)
    assert phase["checkpoint"] == "runs/small/plain"
    assert not (tmp_path / "runs").exists()


def test_a_recipe_with_an_unknown_key_is_refused(openzaya_program: Program, tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(RECIPE + "speed = 9\n", encoding="utf-8")
    result = openzaya_program("train", recipe, "--dry-run")
    assert result.exit_code == 2
    assert "speed" in result.stderr
    assert openzaya_program("train", tmp_path / "none.toml").exit_code == 2


def test_training_hands_the_recipe_and_the_folder_to_the_loop(
    openzaya_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openzaya.train import loop
    from openzaya.train.reports import StepReport

    seen: list[tuple[loop.Run, str | None]] = []

    def run(self: loop.Run, only: str | None = None) -> None:
        seen.append((self, only))
        self.report("tokenizer: ready")
        self.report(StepReport("plain", 5, 10, 1.25, 0.5, 0.99, 1234.0, 70.0, 1.0, 0.25, (0.99,)))

    monkeypatch.setattr(loop.Run, "run", run)
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    result = openzaya_program("train", recipe, "--out", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'run'}\n")
    assert (seen[0][0].folder, seen[0][0].recipe, seen[0][1]) == (tmp_path / "run", RECIPE, None)
    assert "plain: step 5 of 10, loss 1.2500" in result.stderr
    assert "1,234 tokens/s (25.0% of the matmul peak), 1 min 10 s left" in result.stderr
    openzaya_program("train", recipe, "--out", tmp_path / "run", "--phase", "plain")
    assert seen[1][1] == "plain"


def test_interrupted_training_says_that_it_goes_on(
    openzaya_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openzaya.train import loop

    def run(self: loop.Run, only: str | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Run, "run", run)
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    result = openzaya_program("train", recipe, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
