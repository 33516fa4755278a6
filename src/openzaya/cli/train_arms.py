"""`openzaya train` of a recipe with arms: the runs of an ablation, then its table, figures and charts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from openzaya.cli.exits import InputError, say
from openzaya.cli.figures import duration

if TYPE_CHECKING:
    from openzaya.train.arms import Arms
    from openzaya.train.reports import StepReport


def train_arms(
    recipe: Path, out: Path | None, report: Callable[[StepReport | str], None], *, dry_run: bool, as_json: bool
) -> None:
    """Train what is left of the arms of `recipe` and write `<recipe>.json`, `.md` and `.svg` to the folder.

    The three are made anew after every run, of what is finished by then. Prints the table, or with `as_json` what is
    in the first file; with `dry_run` trains nothing.
    """
    from openzaya.train.arms import Arms

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{recipe} has arms, which one process trains; start it without torchrun")
    folder = out or Path("runs") / recipe.resolve().parent.name
    arms = Arms.read(recipe, folder, report)
    if dry_run:
        _show_plan(arms, as_json=as_json)
        return
    say(f"training the arms of {recipe} in {folder}; stop it at any time, the same command goes on")
    command = ["openzaya", "train", str(recipe), *([] if out is None else ["--out", str(out)])]
    try:
        arms.train(lambda: _write(arms, command))
    except KeyboardInterrupt as error:
        error.add_note(f"{folder} is whole; the same command goes on")
        raise
    print((folder / f"{recipe.stem}.{'json' if as_json else 'md'}").read_text(encoding="utf-8"), end="")


def _show_plan(arms: Arms, *, as_json: bool) -> None:
    from openzaya.train.arms import changed

    measured = arms.measured()
    plan: dict[str, dict[str, Any]] = {
        arm: {
            "changes": list(changed(changes)),
            "runs": len(arms.recipe.seeds),
            "finished": len(measured[arm]),
            "tokens": sum(phase.tokens for phase in arms.runs[place].config.phases),
        }
        for place, (arm, changes) in enumerate(arms.recipe.arms.items())
    }
    seconds = [run.seconds for runs in measured.values() for run in runs]
    left = len(arms.runs) - len(seconds)
    if as_json:
        print(json.dumps({"folder": str(arms.folder), "arms": plan, "seconds_of_finished": seconds}))
        return
    for arm, facts in plan.items():
        told = ", ".join(facts["changes"]) or "the baseline as it is"
        print(f"{arm}: {facts['runs']} runs of {facts['tokens']:,} tokens, {facts['finished']} finished; {told}")
    time = f", about {duration(fmean(seconds) * left)} by those finished" if seconds else ""
    print(f"{left} of {len(arms.runs)} runs left, in {arms.folder}{time}")


def _write(arms: Arms, command: Sequence[str]) -> None:
    """Write what is known by now, each file whole or not at all."""
    from openzaya.bench.record import machine, record
    from openzaya.data.shards import whole
    from openzaya.train.arm_charts import chart
    from openzaya.train.arm_table import results_json, table
    from openzaya.train.arms import changed

    results, figures, stem = arms.measured(), arms.recipe.figures, arms.path.stem
    changes = {arm: list(changed(fields)) for arm, fields in arms.recipe.arms.items()}
    facts = record(f"ablation {stem}", command, {"machine": machine(), **results_json(results, figures, changes)})
    texts = {
        "json": json.dumps(facts) + "\n",
        "md": table(results, figures),
        "svg": chart(f"ablation {stem}", results, figures),
    }
    for ending, text in texts.items():
        with whole(arms.folder / f"{stem}.{ending}") as path:
            path.write_text(text, encoding="utf-8")
