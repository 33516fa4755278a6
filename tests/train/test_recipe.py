from __future__ import annotations

from pathlib import Path

import pytest

from openzaya.model.config import NAMED_SHAPES
from openzaya.train.config import TrainConfig, read_train_config

RECIPES = Path(__file__).parents[2] / "recipes"

BOOKS = {"corpora": {"books": {"format": "text", "paths": ["books/*.txt"]}}}
PROBLEMS = {"mixture": {"sorting": {"difficulty": (1, 2)}}}


def config(**fields: object) -> TrainConfig:
    given = {"phases": [{"name": "one", "tokens": 1000}], **PROBLEMS} | fields
    return TrainConfig(**given)  # type: ignore[arg-type]


def phase(**fields: object) -> list[dict[str, object]]:
    return [{"name": "one", "tokens": 1000, **fields}]


def test_the_recipe_of_the_bundled_model_is_valid_and_starts_from_random_weights() -> None:
    recipe = read_train_config(RECIPES / "tiny" / "zaya1-tiny.toml")
    assert [recipe.start_of(phase) for phase in recipe.phases] == [
        "scratch",
        "short",
        "middle",
        "long",
        "slips",
        "long",
    ]
    assert recipe.phases[0].problem_share == 0.75


def test_a_phase_changes_the_rope_base_of_full_layers_only_and_makes_room_for_its_rows() -> None:
    shape = NAMED_SHAPES["zaya1-74b"]
    (first,) = config(phases=phase(row=1 << 18, rope_base=1e6)).phases
    changed = first.shape(shape)
    assert changed.rope_parameters["hybrid"].rope_theta == 1e6
    assert changed.rope_parameters["hybrid"].partial_rotary_factor == 0.5
    assert changed.rope_parameters["hybrid_sliding"] == shape.rope_parameters["hybrid_sliding"]
    assert (changed.max_position_embeddings, changed.layer_types) == (1 << 18, shape.layer_types)
    (plain,) = config().phases
    assert plain.shape(shape) == shape


def test_a_phase_with_corpora_reads_problems_only_where_it_says_so() -> None:
    tokenizer = {"corpora": {"books": 9}}
    (alone,) = config(**BOOKS, phases=phase(corpora={"books": 1}), mixture={}, tokenizer=tokenizer).phases
    assert alone.problem_share == 0.0
    (both,) = config(**BOOKS, phases=phase(corpora={"books": 1}, problems=0.25)).phases
    assert both.problem_share == 0.25


def test_with_a_checkpoint_phases_start_from_it() -> None:
    recipe = config(
        model={"checkpoint": "tiny"}, phases=[*phase(), {"name": "two", "start": "one", "tokens": 10}], lora={}
    )
    assert [recipe.start_of(phase) for phase in recipe.phases] == ["checkpoint", "one"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixture": {}}, "the mixture is empty"),
        ({"phases": phase(warmup=0.1, warmup_tokens=10)}, "warmup 0.1 and warmup_tokens 10 say the same"),
        ({"phases": phase(warmup_tokens=1001)}, "warmup_tokens 1001 is more than the phase's tokens, 1000"),
        ({"phases": phase(schedule="cosine", decay=0.5)}, "decay 0.5 belongs to the schedule 'wsd'"),
        ({"phases": phase(row=255, sharding={"context": 2})}, "a row of 255 cannot be shared"),
        ({"phases": phase(problems=0.0)}, "no corpora to read the rest of"),
        ({"phases": phase(corpora={"books": 1})}, "the corpus 'books' does not exist"),
        ({"phases": phase(start="checkpoint")}, "model.checkpoint is not set"),
        ({"phases": phase(name="a/b")}, "name"),
        ({"model": {"checkpoint": "tiny", "shape": "tiny"}}, "leave out shape and changes"),
        ({"lora": {}}, "set model.checkpoint"),
        (
            {"model": {"checkpoint": "tiny"}, "lora": {}, "phases": phase(start="scratch")},
            "start no phase from scratch",
        ),
        ({"model": {"checkpoint": "tiny"}, "ablation": {"router": "linear"}}, "trains from random weights"),
        ({"ablation": {"router": "linear", "depth_averaging": False}}, "remove depth_averaging"),
        ({"balancing": {"method": "pd"}}, "balancing.method"),
        ({"tokenizer": {"corpora": {"books": 3}}}, "tokenizer.corpora names 'books'; there are none"),
        ({**BOOKS, "mixture": {}, "phases": phase(corpora={"books": 1})}, "where the tokenizer comes from"),
        ({**BOOKS, "phases": phase(corpora={"books": 1}, aggregation={})}, "this phase reads none; set problems"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**fields)
