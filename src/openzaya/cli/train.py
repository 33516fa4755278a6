"""`openzaya train`: a recipe from TOML, run or resumed in one folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openzaya.cli.exits import InputError, say
from openzaya.cli.figures import duration
from openzaya.cli.preflight import preflight
from openzaya.cli.train_arms import train_arms
from openzaya.cli.train_plan import show_cluster_plan, show_process_plan

if TYPE_CHECKING:
    from openzaya.train.config import TrainConfig
    from openzaya.train.launch import Place
    from openzaya.train.reports import StepReport
    from openzaya.train.world import World

_PLANS = "Before a run"


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
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved recipe and what it takes on this machine; train nothing.",
            rich_help_panel=_PLANS,
        ),
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="CLUSTER.toml",
            help="Print what it takes on a described cluster; train nothing.",
            rich_help_panel=_PLANS,
        ),
    ] = None,
    measured: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="For both: tokens a second (of one GPU) that the first phase was seen to do.",
            rich_help_panel=_PLANS,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--preflight",
            help="Under torchrun: check ranks, links, disks and clocks, against --plan where given; train nothing.",
            rich_help_panel=_PLANS,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print any of these, or the results of an ablation, as one JSON object.",
            rich_help_panel=_PLANS,
        ),
    ] = False,
) -> None:
    """Train a model by a recipe.

    Tokenizer and checkpoints (native layout, one for each phase) are written to the folder of the run.
    A run that was stopped goes on where it was when the same command is given again. A recipe with arms (an
    ablation) trains each of them with several seeds and ends with a table.
    """
    from openzaya.train.config import read_toml, read_train_config
    from openzaya.train.plan.cluster import read_cluster

    if "arms" in read_toml(recipe):
        if phase is not None or plan is not None or measured is not None or check:
            raise InputError(f"{recipe} has arms; of the options only --out, --dry-run and --json go with it")
        train_arms(recipe, out, _Reporter().report, dry_run=dry_run, as_json=as_json)
        return
    config = read_train_config(recipe)
    folder = out or Path("runs") / recipe.stem
    if measured is not None and measured <= 0:
        raise InputError(f"--measured is {measured:g}; it must be above 0")
    if check:
        preflight(config, folder, None if plan is None else read_cluster(plan), as_json=as_json)
        return
    if plan is not None:
        show_cluster_plan(config, folder, read_cluster(plan), measured=measured, as_json=as_json)
        return
    if dry_run:
        show_process_plan(config, folder, measured=measured, as_json=as_json)
        return
    _run(config, recipe, folder, phase)


def _run(config: TrainConfig, recipe: Path, folder: Path, phase: str | None) -> None:
    """Train, as this process alone or as one of the ranks that torchrun started; one of them speaks."""
    from openzaya.train.launch import launched
    from openzaya.train.loop import Run

    try:
        with launched(config.device) as place:
            world = _world(place)
            if world.leads:
                say(f"training {recipe} in {folder}; stop it at any time, the same command goes on")
            Run(config, recipe.read_text(encoding="utf-8"), folder, report=_Reporter().report, world=world).run(phase)
    except KeyboardInterrupt as error:
        error.add_note(f"{folder} is whole; the same command goes on, and repeats {config.save_seconds:.0f} s at most")
        raise
    if world.leads:
        print(folder)


def _world(place: Place) -> World:
    from openzaya.train.world import World

    if place.ranks == 1:
        return World()
    from openzaya.train.sharding.world import Ranks

    return Ranks(place.device.type)


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
        share = "" if report.utilisation is None else f" ({report.utilisation:.1%} of the matmul peak)"
        line = (
            f"{report.phase}: step {report.step:,} of {report.steps:,}, loss {report.loss:.4f}, "
            f"gradient {report.gradient_norm:.2f}, expert balance {report.load_entropy:.3f}, "
            f"{report.tokens_per_second:,.0f} tokens/s{share}, {duration(report.seconds_left)} left"
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
