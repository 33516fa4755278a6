from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.evals.arms import (
    RsaArm,
    SampledArm,
    arms_digest,
    arms_of,
    first_samples,
    matched_samples,
)
from openzaya.evals.spec import EvalError, EvalSpec, load_spec, make_spec
from openzaya.mrsa import ConfigError


def spec_of(*arms: dict[str, Any], **values: Any) -> EvalSpec:
    return make_spec({"problems": [{"family": "sorting"}], "arms": arms, **values})


def test_arms_have_names_and_controls_follow_their_own() -> None:
    spec = spec_of(
        {"mode": "single", "samples": 4},
        {"mode": "single", "temperature": 0},
        {"mode": "mrsa", "preset": "tiny"},
        {"mode": "majority", "model": "base", "match": "mrsa"},
        {"mode": "mrsa", "name": "narrow", "preset": "light", "settings": {"candidates": 4}, "controls": ["empty"]},
        models={"main": {}, "base": {"source": "runs/base"}},
    )
    arms = arms_of(spec)
    assert [arm.name for arm in arms] == [
        "single",
        "greedy",
        "mrsa",
        "mrsa, shuffled tails",
        "mrsa, empty tails",
        "base majority",
        "narrow",
        "narrow, empty tails",
    ]
    assert [arm.control_of for arm in arms if isinstance(arm, RsaArm)] == [None, "mrsa", "mrsa", None, "narrow"]
    narrow = arms[-2]
    assert isinstance(narrow, RsaArm)
    assert (narrow.config.candidates, narrow.config.beta, narrow.rollouts) == (4, 8192, 12)


def test_sampled_arms_that_agree_share_a_pool_and_others_do_not() -> None:
    arms = arms_of(
        spec_of(
            {"mode": "single", "samples": 4},
            {"mode": "majority", "samples": 6},
            {"mode": "single", "name": "cooler", "temperature": 0.6},
        )
    )
    pools = [arm.pool for arm in arms if isinstance(arm, SampledArm)]
    assert pools[0] == pools[1] != pools[2]
    assert pools[0].params.max_tokens is None
    assert first_samples(pools[0], arms) == 6


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([], "arms"),
        ([{"mode": "single", "sampels": 2}], "arms.0.single.sampels is no setting"),
        ([{"mode": "guess"}], "arms.0"),
        ([{"mode": "majority"}], "needs samples, or match"),
        ([{"mode": "majority", "samples": 3, "match": "mrsa"}], "give one"),
        ([{"mode": "single", "samples": 2, "temperature": 0}], "give samples = 1"),
    ],
)
def test_a_wrong_arm_is_refused_when_it_is_read(arms: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        spec_of(*arms)


@pytest.mark.parametrize(
    ("arms", "error", "message"),
    [
        ([{"mode": "single", "model": "other"}], EvalError, "names the model 'other'; known are tiny"),
        ([{"mode": "single"}, {"mode": "single"}], EvalError, "two arms are named 'single'"),
        ([{"mode": "majority", "match": "mrsa"}], EvalError, "no mrsa arm here; known: there is none"),
        ([{"mode": "mrsa", "preset": "huge"}], ConfigError, "there is no preset 'huge'"),
        ([{"mode": "mrsa", "preset": "majority"}], EvalError, "has no aggregation round"),
        ([{"mode": "mrsa", "settings": {"seed": 3}}], EvalError, "seed is set by the evaluation itself"),
        ([{"mode": "mrsa", "preset": "tiny", "settings": {"tails": 99}}], ConfigError, "C is 99"),
    ],
)
def test_an_arm_that_cannot_be_run_is_refused(
    arms: list[dict[str, Any]], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        arms_of(spec_of(*arms))


def test_a_specification_is_read_from_toml_and_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.toml"
    path.write_text(
        """
        seed = 7
        [[problems]]
        family = "sorting"
        count = 20
        difficulty = [3, 5]
        [models.main]
        source = "runs/main"
        engine = { memory = "1GiB" }
        [[arms]]
        mode = "mrsa"
        preset = "tiny"
        settings = { candidates = 6 }
        """
    )
    spec = load_spec(path)
    assert (spec.seed, spec.problems[0].difficulty, spec.models["main"].engine.memory) == (7, (3, 5), "1GiB")
    path.write_text("arms = 3")
    with pytest.raises(EvalError, match=r"evaluate.toml: arms is 3"):
        load_spec(path)
    with pytest.raises(EvalError, match="cannot read the evaluation"):
        load_spec(tmp_path / "missing.toml")
    with pytest.raises(EvalError, match="nothing to evaluate on"):
        make_spec({"arms": [{"mode": "single"}]})


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, "tiny"),
        ({"source": "org/big"}, "local"),
        ({"source": "org/big", "engine": {"device": "cuda"}}, "default"),
        ({"backend": ("http://host",)}, "default"),
    ],
)
def test_the_automatic_preset_is_the_one_of_solve(model: dict[str, Any], expected: str) -> None:
    (arm, *_controls) = arms_of(spec_of({"mode": "mrsa"}, models={"main": model}))
    assert isinstance(arm, RsaArm)
    assert arm.preset == expected


@given(st.integers(1, 10**6), st.integers(1, 500), st.integers(1, 10**6), st.integers(1, 5000))
def test_a_matched_majority_has_the_least_m_that_costs_no_less(
    target: int, problems: int, tokens: int, rollouts: int
) -> None:
    m = matched_samples(target, problems, tokens, rollouts)
    assert m * tokens * problems >= target * rollouts
    assert m == 1 or (m - 1) * tokens * problems < target * rollouts


def test_the_digest_changes_with_what_is_generated() -> None:
    digests = {
        arms_digest(arms_of(spec_of(arm)))
        for arm in (
            {"mode": "single"},
            {"mode": "single", "top_p": 0.9},
            {"mode": "single", "samples": 2},
            {"mode": "mrsa", "preset": "tiny"},
            {"mode": "mrsa", "preset": "tiny", "settings": {"tau": 80}},
        )
    }
    assert len(digests) == 5
