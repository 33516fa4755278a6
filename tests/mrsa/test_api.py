from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_backend import Script, ScriptedBackend, always

import openzaya
from openzaya.mrsa import ConfigError, JournalError, PromptError, automatic_preset

SMALL = {"candidates": 3, "tails": 2, "rounds": 1, "beta": 60, "tau": 20, "final_tokens": 90}


def source() -> ScriptedBackend:
    return ScriptedBackend(always(Script(reasoning="adding", content="So \\boxed{42}.")))


def test_importing_openzaya_imports_neither_torch_nor_pydantic() -> None:
    check = "import sys, openzaya; print([name for name in ('torch', 'pydantic', 'httpx') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_solving_over_a_server_imports_no_torch() -> None:
    check = "import sys, openzaya; openzaya.solve; import openzaya.backends.openai; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_package_offers_its_contract_and_nothing_unknown() -> None:
    assert {"solve", "asolve", "load_model", "save_model", "Engine", "__version__"} <= set(dir(openzaya))
    with pytest.raises(AttributeError, match="nonsense"):
        openzaya.nonsense  # noqa: B018


def test_solve_and_asolve_give_the_same_solution() -> None:
    options = {"preset": "light", "seed": 3, **SMALL}
    one = openzaya.solve("Compute 40 + 2.", backend=source(), **options)
    other = asyncio.run(openzaya.asolve("Compute 40 + 2.", backend=source(), **options))
    assert (
        (one.answer, one.votes, one.usage) == (other.answer, other.votes, other.usage) == ("42", {"42": 3}, one.usage)
    )


def test_the_json_object_has_exactly_the_fields_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    values = openzaya.solve("Compute 40 + 2.", backend=source(), journal=path, **SMALL).as_json()
    assert list(values) == [
        "answer",
        "text",
        "votes",
        "rounds",
        "usage",
        "finish_reason",
        "exactness",
        "seconds",
        "journal",
    ]
    assert list(values["rounds"][0]) == ["round", "candidates", "failed", "cut", "completion_tokens", "seconds"]
    assert list(values["usage"]) == ["prompt_tokens", "completion_tokens", "cached_tokens"]
    assert values["journal"] == str(path)


def test_solve_inside_an_event_loop_names_asolve() -> None:
    async def inside() -> None:
        openzaya.solve("x", backend=source())

    with pytest.raises(RuntimeError, match="await asolve"):
        asyncio.run(inside())


def test_a_journal_is_never_overwritten_and_only_an_existing_one_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = openzaya.solve("Compute 40 + 2.", backend=source(), journal=path, **SMALL)
    with pytest.raises(JournalError, match="exists already"):
        openzaya.solve("Compute 40 + 2.", backend=source(), journal=path, **SMALL)
    backend = source()
    assert openzaya.solve("Compute 40 + 2.", backend=backend, resume=path, **SMALL) == first
    assert backend.calls == []
    with pytest.raises(JournalError, match="there is no journal"):
        openzaya.solve("Compute 40 + 2.", backend=source(), resume=tmp_path / "missing.jsonl", **SMALL)
    with pytest.raises(ConfigError, match="so give one"):
        openzaya.solve("Compute 40 + 2.", backend=source(), resume=path, journal=tmp_path / "other.jsonl", **SMALL)


def test_bad_settings_are_refused_before_a_source_is_opened(tmp_path: Path) -> None:
    for bad, error in (
        ({"preset": "huge"}, ConfigError),
        ({"preset": "light", "tails": 9}, ConfigError),
        ({"prompts": tmp_path / "missing.toml"}, PromptError),
    ):
        with pytest.raises(error):
            openzaya.solve("x", backend="http://127.0.0.1:9", **bad)


@pytest.mark.parametrize(
    ("local", "model", "device", "expected"),
    [
        (True, "tiny", "cpu", "tiny"),
        (True, "Zyphra/ZAYA1-8B", "cpu", "local"),
        (True, "Zyphra/ZAYA1-8B", "cuda:0", "default"),
        (False, "tiny", "cpu", "default"),
    ],
)
def test_the_automatic_preset_follows_the_source(local: bool, model: str, device: str, expected: str) -> None:
    assert automatic_preset(model, local=local, device=device) == expected
