"""Recipes with arms: what each arm changes, runs that resume and are shared, and what a table says of them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from openzaya.cli.main import app
from openzaya.train.arm_charts import chart
from openzaya.train.arm_table import difference, results_json, results_of, spread, table
from openzaya.train.arms import Arms, changed, merged
from openzaya.train.config import read_train_config
from openzaya.train.learner import Learner
from openzaya.train.measures import Measured, entropy_figures, read_measured

RECIPES = Path(__file__).parents[2] / "recipes" / "ablations"
BASELINE = """
seed = 3
threads = 1
dtype = "float32"
save_seconds = 0.001
[held_out]
tokens = 400
every_steps = 3
[logging]
every_seconds = 0.0001
tensorboard = false
[tokenizer]
vocab_size = 330
documents = 40
[model.changes]
num_hidden_layers = 2
hidden_size = 32
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
num_experts = 3
moe_intermediate_size = 16
router_hidden_size = 8
[corpora.problems]
format = "problems"
documents = 80
held_out = 0.2
families = { sums_list = { difficulty = [1, 3] } }
[mixture]
sums_list = { difficulty = [1, 3] }
[[phases]]
name = "train"
tokens = 4000
batch_tokens = 500
row = 100
corpora = { problems = 1.0 }
"""
ROUTER = """
baseline = "baseline.toml"
seeds = [0]
figures = ["problems", "entropy_lowest"]
problems = 4
[arms.whole]
[arms.linear]
ablation.router = "linear"
"""
TRIMMING = """
baseline = "baseline.toml"
seeds = [0]
figures = ["problems"]
problems = 4
[arms.whole]
[arms.drop]
phase.overlong = "drop"
"""


def recipes(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"baseline": BASELINE, "router": ROUTER, "trimming": TRIMMING}.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder


def figures_of(found: Measured) -> Measured:
    """Without what another run of the same weights may differ in."""
    return replace(found, seconds=0.0)


@pytest.fixture(scope="module", autouse=True)
def known_peak() -> Iterator[None]:
    """The speed of large matrix products, which every start of a run measures, taken as known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openzaya.train.loop.matmul_peak", lambda _device, _dtype: 1e12)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = recipes(tmp_path_factory.mktemp("ablation"))
    reports: list[Any] = []
    Arms.read(folder / "router.toml", folder / "runs", reports.append).train()
    return folder, reports


# ---- what an arm is ----


def test_arms_change_what_they_say_and_nothing_else() -> None:
    fields = {"a": {"b": 1, "c": 2}, "d": [1], "phases": [{"row": 4}, {"row": 8, "overlong": "trim"}]}
    changes = {"a": {"c": 3}, "d": [2], "phase": {"overlong": "drop"}}
    assert merged(fields, changes) == {
        "a": {"b": 1, "c": 3},
        "d": [2],
        "phases": [{"row": 4, "overlong": "drop"}, {"row": 8, "overlong": "drop"}],
    }
    assert fields["phases"][1] == {"row": 8, "overlong": "trim"}
    assert list(changed(changes)) == ["a.c = 3", "d = [2]", 'phase.overlong = "drop"']


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = [0]", "seeds = [0, 0]"), "one twice"),
        (('figures = ["problems"', 'figures = ["loss"'), "the figure 'loss' is unknown"),
        (('ablation.router = "linear"', 'ablation.router = "round"'), r"arms.linear\): ablation.router"),
        (("[arms.whole]\n", ""), "arms"),
        (("[arms.linear]", "[arms.'../linear']"), "arms"),
        (('baseline = "baseline.toml"', 'baseline = "none.toml"'), "none.toml cannot be read"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_before_anything_is_trained(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    folder = recipes(tmp_path)
    (folder / "router.toml").write_text(ROUTER.replace(*change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Arms.read(folder / "router.toml", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_here_share_one_baseline_and_three_seeds(path: Path) -> None:
    if path.stem == "baseline":
        config = read_train_config(path)
        assert config.threads == 1
        assert dict(config.corpora["problems"].families) == config.mixture
        return
    arms = Arms.read(path, Path("runs"))
    (first, *others) = arms.recipe.arms.items()
    assert first == ("zaya1", {})
    assert all(changes for _name, changes in others)
    assert [run.seed for run in arms.runs if run.arm == "zaya1"] == [0, 1, 2]


def test_all_recipes_here_have_at_most_fourteen_arms() -> None:
    arms = {arm for path in RECIPES.glob("*.toml") for arm in tomllib.loads(path.read_text()).get("arms", {})}
    assert len(arms) == 14


# ---- runs ----


def test_every_arm_is_trained_and_measured(trained: tuple[Path, list[Any]]) -> None:
    folder, reports = trained
    found = Arms.read(folder / "router.toml", folder / "runs").measured()
    assert {arm: [run.seed for run in runs] for arm, runs in found.items()} == {"whole": [0], "linear": [0]}
    (whole,), (linear,) = found.values()
    assert whole.steps == linear.steps == 8
    assert [step for step, _value in whole.load_entropy] == list(range(1, 9))
    assert [step for step, _loss in whole.held_out["problems"]] == [3, 6, 8]
    assert whole.figures["problems"] == whole.held_out["problems"][-1][1]
    assert {"reasoning_short", "answer_long", "solved", "entropy_lowest"} <= whole.figures.keys()
    # Projection, norm and two layers of the MLP, then as many outputs a width: all of it against one matrix.
    mlp = (32 * 8 + 8) + 8 + 2 * (8 * 8 + 8) + 8 * 4
    assert whole.parameters - linear.parameters == 2 * mlp + 8 - 2 * (32 * 4)
    assert any(str(report).startswith("linear-0: run 2 of 2, about ") for report in reports)


def test_the_recipe_in_the_folder_of_a_run_is_whole(trained: tuple[Path, list[Any]]) -> None:
    folder, _reports = trained
    (run,) = (run for run in Arms.read(folder / "router.toml", folder / "runs").runs if run.arm == "linear")
    assert read_train_config(run.folder / "recipe.toml") == run.config
    assert run.config.ablation.router == "linear"
    assert run.config.seed == 0


def test_what_is_finished_is_not_trained_again_and_is_shared(
    trained: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _reports = trained
    steps = 0
    real = Learner.step

    def counting(self: Learner, batches: Any, scale: float) -> Any:
        nonlocal steps
        steps += 1
        return real(self, batches, scale)

    monkeypatch.setattr(Learner, "step", counting)
    Arms.read(folder / "router.toml", folder / "runs").train()
    assert steps == 0
    trimming = Arms.read(folder / "trimming.toml", folder / "runs")
    trimming.train()
    assert steps == 8
    more = folder / "more.toml"
    more.write_text(ROUTER.replace("problems = 4", "problems = 5"), encoding="utf-8")
    Arms.read(more, folder / "runs").train()
    assert [run.asked for runs in Arms.read(more, folder / "runs").measured().values() for run in runs] == [5, 5]
    Arms.read(folder / "router.toml", folder / "runs").train()
    assert steps == 8, "other problems are asked without training again"
    assert [len(runs) for runs in trimming.measured().values()] == [1, 1]


def test_a_folder_with_a_run_of_another_recipe_is_refused(trained: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder, _reports = trained
    other = recipes(tmp_path)
    (other / "router.toml").write_text(ROUTER + "optimizer.clip = 0.5\n", encoding="utf-8")
    with pytest.raises(ValueError, match="linear-0 holds a run of another recipe"):
        Arms.read(other / "router.toml", folder / "runs").train()


def test_arms_stopped_after_any_step_end_with_the_figures_of_uninterrupted_ones(
    trained: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _reports = trained
    steps = stops = 0
    real = Learner.step

    def failing(self: Learner, batches: Any, scale: float) -> Any:
        nonlocal steps
        steps += 1
        if steps in (6, 13, 17):
            raise Stopped
        return real(self, batches, scale)

    monkeypatch.setattr(Learner, "step", failing)
    arms = Arms.read(recipes(tmp_path) / "router.toml", tmp_path / "runs")
    while not all(arms.measured().values()):
        try:
            arms.train()
        except Stopped:
            stops += 1
        assert stops < 12
    assert stops == 3
    for name in ("whole-0", "linear-0"):
        found, expected = (read_measured(place / "runs" / name) for place in (tmp_path, folder))
        assert found is not None
        assert expected is not None
        assert figures_of(found) == figures_of(expected)


class Stopped(Exception):
    pass


def program(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", *(str(argument) for argument in arguments)])


def test_the_command_ends_with_the_table_and_leaves_results_and_charts(trained: tuple[Path, list[Any]]) -> None:
    folder, _reports = trained
    runs = folder / "runs"
    plan = program(folder / "router.toml", "--out", runs, "--dry-run")
    assert 'linear: 1 runs of 4,000 tokens, 1 finished; ablation.router = "linear"' in plan.stdout
    assert "0 of 2 runs left" in plan.stdout
    done = program(folder / "router.toml", "--out", runs)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == (runs / "router.md").read_text()
    assert done.stdout.count("\n") == 4
    facts = json.loads(program(folder / "router.toml", "--out", runs, "--json").stdout)
    assert facts["command"] == f"openzaya train {folder}/router.toml --out {runs}"
    assert facts["machine"]["processor"]
    results, figures = results_of(facts)
    assert (runs / "router.svg").read_text() == chart("ablation router", results, figures)


def test_options_of_a_single_run_are_refused_with_arms(trained: tuple[Path, list[Any]]) -> None:
    refused = program(trained[0] / "router.toml", "--phase", "train")
    assert isinstance(refused.exception, ValueError) or refused.exit_code == 2
    assert "has arms" in f"{refused.exception}{refused.stderr}"


# ---- figures ----


def made(seed: int, **figures: float) -> Measured:
    curve = [(step, 0.5 + 0.04 * step) for step in range(1, 13)]
    return Measured(seed, 1000, 900, 12, 60.0, "abc", 4, figures, curve, {"code": [(12, 1.0)]})


def results(code: Callable[[int], float], seeds: int = 3) -> dict[str, list[Measured]]:
    first = [made(seed, code=2.0 + 0.5 * seed, solved=0.5) for seed in range(seeds)]
    return {
        "zaya1": first,
        "other": [made(seed, code=first[seed].figures["code"] + code(seed)) for seed in range(seeds)],
    }


def test_differences_are_paired_by_seed_with_students_interval() -> None:
    found = results(lambda seed: 0.1 + 0.01 * seed)
    own = difference(found["other"], found["zaya1"], "code")
    # Mean 0.11, deviation 0.01; 4.303 * 0.01 / sqrt(3) either way.
    assert own is not None
    assert (own.mean, own.low, own.high) == pytest.approx((0.11, 0.085156, 0.134844), abs=1e-6)
    assert own.verdict == "worse"
    told = spread(found["zaya1"], "code")
    assert told is not None
    assert (told.mean, told.deviation) == (2.5, 0.5)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (lambda seed: -0.1 - 0.01 * seed, "better"),
        (lambda seed: 0.1 * (seed - 1), "not told apart"),
        (lambda seed: 0.1 * seed, "not told apart"),
        (lambda _seed: 0.0, "not told apart"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(code: Callable[[int], float], verdict: str) -> None:
    found = results(code)
    own = difference(found["other"], found["zaya1"], "code")
    assert own is not None
    assert own.verdict == verdict


def test_of_shares_more_is_better() -> None:
    first, more = (
        [made(seed, solved=0.1) for seed in range(2)],
        [made(seed, solved=0.2 + seed / 1e3) for seed in range(2)],
    )
    own = difference(more, first, "solved")
    assert own is not None
    assert own.verdict == "better"


def test_seeds_that_one_arm_lacks_are_left_out_of_its_difference() -> None:
    found = results(lambda seed: 0.1 if seed < 2 else 9.0)
    own = difference(found["other"], found["zaya1"][:2], "code")
    assert own is not None
    assert own.mean == pytest.approx(0.1)
    assert difference(found["other"], found["zaya1"][:1], "code") is None


def test_a_table_has_a_row_an_arm_whatever_is_finished() -> None:
    found = results(lambda seed: 0.1 + 0.01 * seed) | {"later": []}
    lines = table(found, ["code", "solved"]).splitlines()
    assert lines[2] == "| zaya1 | 3 | 900 | 2.500 ± 0.500 | - | 0.500 ± 0.000 | - |"
    assert lines[3] == "| other | 3 | 900 | 2.610 ± 0.510 | +0.110 (+0.085 to +0.135): worse | - | - |"
    assert lines[4] == "| later | 0 | - | - | - | - | - |"
    assert len({line.count("|") for line in lines}) == 1


def test_results_as_json_have_every_run() -> None:
    found = results(lambda _seed: 0.1)
    facts = json.loads(json.dumps(results_json(found, ["code"], {"zaya1": [], "other": ["x = 1"]})))
    assert facts["arms"]["other"]["changes"] == ["x = 1"]
    assert [run["figures"]["code"] for run in facts["arms"]["zaya1"]["runs"]] == [2.0, 2.5, 3.0]
    assert facts["figures"]["code"]["judged"]
    assert not facts["figures"]["solved"]["judged"]
    again, figures = results_of(facts)
    assert figures == ["code"]
    assert (table(again, figures), chart("x", again, figures)) == (table(found, figures), chart("x", found, figures))


def test_charts_are_one_file_with_a_dot_for_every_run() -> None:
    found = results(lambda _seed: 0.1) | {"later": []}
    drawn = ElementTree.fromstring(chart("ablation <x>", found, ["code", "entropy_lowest"]))
    name = "{http://www.w3.org/2000/svg}"
    assert len(list(drawn.iter(f"{name}circle"))) == 6
    # No run has the second figure, so there are no curves either.
    assert not list(drawn.iter(f"{name}path"))
    with_curves = {arm: [replace(run, figures={"entropy_lowest": 0.5}) for run in runs] for arm, runs in found.items()}
    assert "load entropy, mean over layers" in chart("x", with_curves, ["entropy_lowest"])


def test_balance_is_reached_for_good_after_the_last_step_below() -> None:
    curve = [(1, 0.995), (2, 0.3), (3, 0.992), (4, 0.98), (5, 0.999)]
    figures = entropy_figures(curve)
    assert figures["steps_to_balance"] == 4
    assert figures["entropy_lowest"] == 0.3
    assert entropy_figures([(1, 1.0)])["steps_to_balance"] == 0
