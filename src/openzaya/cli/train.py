"""`openzaya train`: a recipe from TOML, run or resumed in one folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openzaya.cli.exits import say
from openzaya.cli.figures import duration

if TYPE_CHECKING:
    from openzaya.train.config import TrainConfig
    from openzaya.train.loop import StepReport


def train(
    recipe: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The recipe.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run; runs/ and the recipe's name if not given.")
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this phase. Those that do not build on each other may run at once."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan as JSON, and train nothing.")
    ] = False,
) -> None:
    """Train a model by a recipe.

    Tokenizer and checkpoints (native layout, one for each phase) are written to the folder of the run.
    A run that was stopped goes on where it was when the same command is given again.
    """
    from openzaya.train.config import read_train_config

    config = read_train_config(recipe)
    folder = out or Path("runs") / recipe.stem
    if dry_run:
        print(json.dumps(plan_of(config, folder), indent=2))
        return
    from openzaya.train.loop import Run

    say(f"training {recipe} in {folder}; stop it at any time, the same command goes on")
    try:
        Run(config, recipe.read_text(encoding="utf-8"), folder, report=_Reporter().report).run(phase)
    except KeyboardInterrupt as error:
        error.add_note(f"{folder} is whole; the same command goes on, and repeats {config.save_seconds:.0f} s at most")
        raise
    print(folder)


def plan_of(config: TrainConfig, folder: Path) -> dict[str, object]:
    """The resolved recipe, the model's size and the steps of each phase, as plain values."""
    from openzaya.model.info import model_info
    from openzaya.train.schedule import total_steps

    sizes = model_info(config.model.build(vocab_size=config.tokenizer.vocab_size, dtype="float32"))
    phases = [
        {"name": phase.name, "start": phase.start, "steps": total_steps(phase), "tokens": phase.tokens,
         "checkpoint": str(folder / phase.name)}
        for phase in config.phases
    ]  # fmt: skip
    return {
        "recipe": config.model_dump(mode="json"),
        "plan": {
            "folder": str(folder),
            "parameters": sizes.total,
            "active_parameters": sizes.active,
            "tokens": sum(phase.tokens for phase in config.phases),
            "phases": phases,
        },
    }


class _Reporter:
    """Prints what a run reports: sentences on lines of their own, steps on one line that moves on a terminal."""

    def __init__(self) -> None:
        self._moves = sys.stderr.isatty()
        self._open = False

    def report(self, report: StepReport | str) -> None:
        if isinstance(report, str):
            self._end_line()
            say(report)
            return
        line = (
            f"{report.phase}: step {report.step:,} of {report.steps:,}, loss {report.loss:.4f}, "
            f"gradient {report.gradient_norm:.2f}, expert balance {report.load_entropy:.3f}, "
            f"{report.tokens_per_second:,.0f} tokens/s, {duration(report.seconds_left)} left"
        )
        if not self._moves:
            say(line)
            return
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        self._open = True

    def _end_line(self) -> None:
        if self._open:
            print(file=sys.stderr)
            self._open = False
