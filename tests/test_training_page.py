"""The tables of docs/training.md are those of the results that are kept, and every ablation has its place there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from openzaya.train.arm_table import results_of, table

REPOSITORY = Path(__file__).parent.parent


def publishing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish", REPOSITORY / "recipes" / "ablations" / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", publishing().names())
def test_the_page_has_the_table_of_the_results_that_are_kept(name: str) -> None:
    publish = publishing()
    page = publish.PAGE.read_text(encoding="utf-8")
    kept = publish.RESULTS / f"ablation-{name}.json"
    drawn = ""
    if kept.exists():
        drawn = table(*results_of(json.loads(kept.read_text(encoding="utf-8"))))
        assert (REPOSITORY / "docs" / "images" / f"ablation-{name}.svg").exists()
    assert publish.with_results(page, name, drawn) == page, "run recipes/ablations/publish.py"


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the table of router"):
        publishing().with_results("# no markers\n", "router", "| a |\n")
