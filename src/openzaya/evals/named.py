"""Evaluations named in a few words: what `openzaya eval` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from openzaya.backends.protocol import Backend
from openzaya.evals.evaluate import evaluate
from openzaya.evals.progress import OnProgress
from openzaya.evals.questions import questions_of
from openzaya.evals.report import Report
from openzaya.evals.spec import Control, EvalError, make_spec
from openzaya.problems import families

MODES = ("single", "majority", "mrsa")
EVERYTHING = "problems"
"""The name of all families together."""

_COUNT = 200
_VOTES = 16


def evaluate_named(
    benches: Sequence[str],
    *,
    model: str | Path = "tiny",
    backend: Backend | str | Sequence[str] | None = None,
    backend_model: str | None = None,
    api_key_env: str | None = None,
    modes: Sequence[str] = ("single",),
    preset: str = "auto",
    samples: int | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Report:
    """Evaluate one model on benchmarks by name: a family of `problems`, "problems" for all, or a path to a .jsonl file.

    `modes` are "single" (`samples` rollouts a problem, and a greedy row beside them), "majority" (over `samples`, 16
    unless given; at the generated tokens of Markovian RSA where that is run too) and "mrsa" (with its controls).
    `limit` is the problems of each benchmark: 200 of a family (fewer where it has no more) and all of a file unless
    given. `settings` are further fields of `EvalSpec`. Raises as `evaluate`, and EvalError, which is a ValueError, for
    a benchmark or mode that does not exist.
    """
    if not benches:
        raise EvalError(f"no benchmark is named; give {_known()}")
    if limit is not None and limit < 1:
        raise EvalError(f"limit is {limit}; it must be at least 1")
    names, files = _benchmarks(benches)
    values: dict[str, Any] = {
        "problems": [{"family": name, "count": limit or _COUNT, "fewer": True} for name in names],
        "files": [{"path": path, "limit": limit} for path in files],
        "seed": seed,
        "out": out,
        **settings,
    }
    given: dict[str, Backend] = {}
    name = "model"
    source: dict[str, Any] = {"source": str(model)}
    if isinstance(backend, str):
        source = {"backend": [backend], "backend_model": backend_model, "api_key_env": api_key_env}
    elif isinstance(backend, Sequence):
        source = {"backend": list(backend), "backend_model": backend_model, "api_key_env": api_key_env}
    elif backend is not None:
        given[name] = backend
    values["models"] = {name: source}
    values["arms"] = _arms(modes, preset, samples, controls=get_args(Control))
    spec = make_spec(values)
    if "mrsa" in modes and len(questions_of(spec)) == 1:
        # One problem alone has no other whose tails it could be shown.
        spec = make_spec({**values, "arms": _arms(modes, preset, samples, controls=("empty",))})
    return evaluate(spec, backends=given, on_progress=on_progress)


def _benchmarks(benches: Sequence[str]) -> tuple[list[str], list[Path]]:
    chosen: list[str] = []
    files: list[Path] = []
    for bench in benches:
        if bench == EVERYTHING:
            chosen += families()
        elif bench in families():
            chosen.append(bench)
        elif bench.endswith(".jsonl"):
            files.append(Path(bench))
        else:
            raise EvalError(f"there is no benchmark {bench!r}; give {_known()}")
    return list(dict.fromkeys(chosen)), list(dict.fromkeys(files))


def _known() -> str:
    return f"a path to a .jsonl file, {EVERYTHING!r} for all families, or one of {', '.join(families())}"


def _arms(modes: Sequence[str], preset: str, samples: int | None, controls: Sequence[str]) -> list[dict[str, Any]]:
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise EvalError(f"modes are {list(modes)}; give some of {', '.join(MODES)}")
    arms: list[dict[str, Any]] = []
    if "single" in modes:
        arms.append({"mode": "single", "samples": 1 if samples is None else samples})
        arms.append({"mode": "single", "temperature": 0.0})
    if "majority" in modes:
        size: dict[str, Any] = {"match": "mrsa"} if "mrsa" in modes else {"samples": samples or _VOTES}
        arms.append({"mode": "majority", **size})
    if "mrsa" in modes:
        arms.append({"mode": "mrsa", "preset": preset, "controls": list(controls)})
    return arms
