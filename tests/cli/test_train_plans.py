"""`openzaya train --dry-run` and `--plan`: what they print, and what they refuse."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from openzaya.train.config import read_train_config

Program = Callable[..., Result]
RECIPES = Path(__file__).parents[2] / "recipes"
TINY = RECIPES / "tiny" / "zaya1-tiny.toml"
ZAYA1_8B = RECIPES / "zaya1-8b" / "zaya1-8b.toml"
CLUSTERS = RECIPES / "clusters"


@pytest.fixture(autouse=True)
def _a_known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openzaya.train.peak.matmul_peak", lambda *_arguments: 1e11)
    monkeypatch.setattr("openzaya.memory.memory_bytes", lambda: (1 << 36, 1 << 34))


def test_a_dry_run_says_what_a_run_takes_on_this_machine(openzaya_program: Program) -> None:
    result = openzaya_program("train", TINY, "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)["plan"]
    assert plan["tokens"] == 52_000_000
    assert plan["machine"]["matmul"] == 1e11
    short = plan["phases"][0]
    assert short["fits"] is True
    flops = short["outline"]["token_flops"] * 11e6 + short["outline"]["optimizer_flops"] * short["outline"]["steps"]
    assert short["seconds"] == pytest.approx(flops / (1e11 * plan["machine"]["utilisation"]))
    rates = short["outline"]["rates"]
    assert rates[0]["muon"] < rates[1]["muon"] == rates[-1]["muon"] == 0.006
    assert plan["seconds"] == sum(phase["seconds"] for phase in plan["phases"])


def test_a_measured_speed_replaces_the_assumed_one(openzaya_program: Program) -> None:
    result = openzaya_program("train", TINY, "--dry-run", "--json", "--measured", "5000")
    first = json.loads(result.stdout)["plan"]["phases"][0]
    assert first["tokens_per_second"] == pytest.approx(5000, rel=1e-3)
    assert first["seconds"] == pytest.approx(11e6 / 5000, rel=1e-3)
    assert openzaya_program("train", TINY, "--dry-run", "--measured", "0").exit_code == 2


def test_a_dry_run_in_a_pipe_is_the_recipe_as_toml_and_then_plain_tables(
    openzaya_program: Program, tmp_path: Path
) -> None:
    result = openzaya_program("train", TINY, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    resolved, _, tables = result.stdout.partition("the plan, in runs/zaya1-tiny")
    again = tmp_path / "again.toml"
    again.write_text(resolved, encoding="utf-8")
    assert read_train_config(again) == read_train_config(TINY), "it says all there is, and can be given back"
    assert "clip" in tomllib.loads(resolved)["optimizer"]
    for words in ("11.00 million", "experts", "activations with checkpointing", "tokens/s", "assumed"):
        assert words in tables


def test_a_plan_for_a_cluster_shows_every_part_and_what_it_assumes(openzaya_program: Program) -> None:
    result = openzaya_program("train", ZAYA1_8B, "--plan", CLUSTERS / "mi300x-1024.toml")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    for words in (
        "8.84 billion", "pretrain-1 pretrain-2 midtrain-32k sft-131k", "data 128, context 8, 1 x 16,384 tokens",
        "fastest that fits", "seconds of a step", "page reads a second", "save every", "utilisation 0.2",
    ):  # fmt: skip
        assert words in text, words


def test_a_plan_for_a_cluster_in_json_has_the_parts_of_a_step(openzaya_program: Program) -> None:
    arguments = ("train", ZAYA1_8B, "--plan", CLUSTERS / "h200-8.toml", "--json")
    plan = json.loads(openzaya_program(*arguments).stdout)["plan"]
    assert plan["cluster"]["assumed"]["utilisation"] == 0.2
    assert {"products", "optimizer", "experts", "context", "data", "data_waited"} <= plan["phases"][0]["step"].keys()
    assert len(plan["fastest"]) == 4
    measured = json.loads(openzaya_program(*arguments, "--measured", "9000").stdout)["plan"]
    assert measured["phases"][0]["tokens_per_second_a_gpu"] == pytest.approx(9000, rel=1e-3)
    assert measured["cluster"]["assumed"]["utilisation"] == pytest.approx(0.105, abs=0.005)


def test_a_recipe_that_a_cluster_has_too_many_gpus_for_is_refused_with_the_remedy(
    openzaya_program: Program, tmp_path: Path
) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(ZAYA1_8B.read_text(encoding="utf-8").replace("= 16_777_216", "= 1_048_576"), encoding="utf-8")
    result = openzaya_program("train", recipe, "--plan", CLUSTERS / "mi300x-1024.toml")
    assert result.exit_code == 2
    assert "phase 'pretrain-1'" in result.stderr
    assert "raise batch_tokens or sharding.context" in result.stderr


# ---- preflight, a rank alone ----


def test_a_preflight_of_one_process_looks_at_the_machine_and_its_folder(
    openzaya_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openzaya.train.preflight.run.product_speed", lambda *_arguments: 1e12)
    result = openzaya_program("train", TINY, "--out", tmp_path / "run", "--preflight")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    for words in ("ranks 1 1 hosts", "large products 1 TFLOP/s", "disk, written", "fsync", "verdict ready"):
        assert words in text, words
    as_json = openzaya_program("train", TINY, "--out", tmp_path / "run", "--preflight", "--json")
    assert json.loads(as_json.stdout)["stops"] is False


def test_a_preflight_that_finds_too_little_room_ends_with_its_own_code(
    openzaya_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openzaya.train.preflight.run.product_speed", lambda *_arguments: 1e12)
    monkeypatch.setattr("openzaya.cli.preflight._needed_bytes", lambda _config: 1 << 62)
    result = openzaya_program("train", TINY, "--out", tmp_path / "run", "--preflight")
    assert result.exit_code == 3
    assert "stop: disks" in result.stderr
    assert "to stop for" in result.stdout
