"""The one entry: a specification in, a report out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openzaya import __version__
from openzaya.backends.protocol import Backend
from openzaya.evals.arms import Arm, RsaArm, arms_digest, arms_of
from openzaya.evals.outcomes import Grader, Outcome, outcomes_of
from openzaya.evals.progress import Meter, OnProgress
from openzaya.evals.questions import Question, questions_digest, questions_of
from openzaya.evals.records import Header, Results
from openzaya.evals.report import ArmEntry, Report, figures
from openzaya.evals.runner import Runner
from openzaya.evals.sources import Sources
from openzaya.evals.spec import EvalError, EvalSpec, load_spec
from openzaya.evals.tables import markdown
from openzaya.grading import Verifier
from openzaya.mrsa.prompts import Prompts, bundled_prompts, load_prompts

RESULTS, SCORES, REPORT, MARKDOWN = "results.jsonl", "scores.jsonl", "report.json", "report.md"


def evaluate(spec: EvalSpec | str | Path, **options: Any) -> Report:
    """`aevaluate` for callers without an event loop; takes the same options and raises the same errors."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("evaluate was called inside a running event loop; await aevaluate there")
    return asyncio.run(aevaluate(spec, **options))


async def aevaluate(
    spec: EvalSpec | str | Path,
    *,
    backends: Mapping[str, Backend] | None = None,
    only: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Report:
    """Run every arm on every problem of a specification (or of a TOML file with one), and report.

    With an `out` folder the raw results go to `results.jsonl` as they come; called again with the same specification
    it goes on from there. `scores.jsonl` (a line a problem), `report.json` and `report.md` follow at the end.
    `backends` stand in for models of the specification, by name, and stay open.

    With `only` some of the benchmarks are run and reported, and of the files only the raw results are written: several
    processes may share the work in one folder, and the same specification without `only` then writes the report.

    Raises EvalError, ConfigError or PromptError for what cannot be run or resumed. A problem on which a source fails
    altogether is tried once more at the end of its stage, and raises BackendError or MrsaError where that fails too,
    as do several in a row at once; what was finished by then is kept.
    """
    spec = spec if isinstance(spec, EvalSpec) else load_spec(spec)
    arms = arms_of(spec)
    every_question = questions_of(spec)
    questions = _chosen(every_question, only)
    prompts = load_prompts(spec.prompts) if spec.prompts else bundled_prompts()
    meter = Meter(on_progress)
    sources = Sources(spec.models, backends or {})
    with ExitStack() as stack:
        verifier = stack.enter_context(Verifier()) if spec.thorough else None
        header = await asyncio.to_thread(_header, spec, arms, every_question, prompts, sources)
        controlled = {arm.control_of for arm in arms if isinstance(arm, RsaArm) and arm.control_of is not None}
        results = Results(
            spec.out / RESULTS if spec.out else None, header, tails_of=controlled, keep_text=spec.keep_text
        )
        stack.callback(results.close)
        runner = Runner(
            questions, arms, results, seed=spec.seed, concurrency=spec.concurrency, prompts=prompts, meter=meter
        )
        try:
            await runner.execute(sources)
        finally:
            await sources.aclose()
        grader = Grader(verifier)
        outcomes = {arm.name: outcomes_of(arm, arms, questions, results, seed=spec.seed, grader=grader) for arm in arms}
    report = _report(spec, arms, questions, outcomes, header)
    if spec.out is not None and not only:
        _write(spec.out, report, questions, outcomes)
    return report


def _chosen(questions: Sequence[Question], only: Sequence[str]) -> Sequence[Question]:
    names = dict.fromkeys(question.benchmark for question in questions)
    for name in only:
        if name not in names:
            raise EvalError(f"the benchmark {name!r} is not in the evaluation; it has {', '.join(names)}")
    return [question for question in questions if question.benchmark in only] if only else questions


def _header(
    spec: EvalSpec, arms: Sequence[Arm], questions: Sequence[Question], prompts: Prompts, sources: Sources
) -> Header:
    asked = [spec.seed, questions_digest(questions), arms_digest(arms), prompts.digest]
    return Header(
        digest=hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        models=sources.identities(),
        spec=spec.model_dump(mode="json"),
        commit=_commit(),
    )


def _commit() -> str | None:
    """The commit of this code, with `-dirty` where it was changed since; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _report(
    spec: EvalSpec,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    outcomes: Mapping[str, Sequence[Outcome]],
    header: Header,
) -> Report:
    benchmarks, rows, comparisons = figures(questions, arms, outcomes, seed=spec.seed, resamples=spec.resamples)
    return Report(
        openzaya=__version__,
        commit=header.commit,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=spec.seed,
        digest=header.digest,
        resamples=spec.resamples,
        models={name: dict(identity) for name, identity in header.models.items()},
        benchmarks=benchmarks,
        arms=tuple(_entry(arm) for arm in arms),
        rows=rows,
        comparisons=comparisons,
    )


def _entry(arm: Arm) -> ArmEntry:
    if isinstance(arm, RsaArm):
        settings = arm.config.model_dump(mode="json", exclude={"seed", "task"}, exclude_none=True)
        control = arm.tails if arm.control_of else None
        return ArmEntry(
            name=arm.name, mode=arm.mode, model=arm.model, preset=arm.preset, control=control, settings=settings
        )
    params = arm.pool.params
    names = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "enable_thinking", "force_answer")
    sampling = {name: getattr(params, name) for name in names}
    if arm.samples is not None:
        sampling["samples"] = arm.samples
    return ArmEntry(name=arm.name, mode=arm.mode, model=arm.model, matches=arm.match, settings=sampling)


def _write(out: Path, report: Report, questions: Sequence[Question], outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    lines = []
    for place, question in enumerate(questions):
        scores = {arm: _score(each[place]) for arm, each in outcomes.items()}
        row = {"problem": question.id, "difficulty": question.difficulty, "question": question.text, "arms": scores}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    _replace(out / SCORES, "".join(lines))
    _replace(out / MARKDOWN, markdown(report))
    _replace(out / REPORT, report.model_dump_json(indent=1) + "\n")


def _score(outcome: Outcome) -> dict[str, Any]:
    values = asdict(outcome)
    values["finish_reasons"] = dict(outcome.finish_reasons)
    values["votes"] = dict(outcome.votes)
    return values


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", errors="surrogatepass")
    os.replace(partial, path)
