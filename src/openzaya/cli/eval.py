"""`openzaya eval`: benchmarks, scored in the modes that are asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openzaya.cli.exits import InputError
from openzaya.cli.options import (
    ApiKeyOption,
    BackendModelOption,
    BackendOption,
    ModelOption,
    OfflineOption,
    Source,
    YesOption,
    hub_model_folder,
)

if TYPE_CHECKING:
    from openzaya.evals import EvalSpec, Report
    from openzaya.evals.progress import OnProgress

MODES = "single|majority|mrsa"
_PANEL = "What is measured"


def evaluate(
    benches: Annotated[
        list[str],
        typer.Argument(
            metavar="BENCH...",
            help="Problem families, problems for all of them, .jsonl files of questions, or one .toml specification.",
        ),
    ],
    model: ModelOption = None,
    backend: BackendOption = None,
    backend_model: BackendModelOption = None,
    api_key_env: ApiKeyOption = None,
    yes: YesOption = False,
    offline: OfflineOption = False,
    mode: Annotated[
        list[str] | None,
        typer.Option(metavar=MODES, help="Repeat it for several; single if not given.", rich_help_panel=_PANEL),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of mode mrsa; auto if not given.", rich_help_panel=_PANEL)
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(metavar="K", help="Rollouts a problem in single and majority.", rich_help_panel=_PANEL),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Problems of each benchmark.", rich_help_panel=_PANEL)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", help="Decides the problems and every draw.", rich_help_panel=_PANEL)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep raw rollouts and the report there, and go on from them.", rich_help_panel=_PANEL
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BENCH",
            help="Of a specification this benchmark alone, and write no report; repeat it for several. Processes may "
            "share a folder, and the same command without --only then writes the report.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object.", rich_help_panel=_PANEL)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.", rich_help_panel=_PANEL)] = False,
) -> None:
    """Score a model on benchmarks.

    Prints means with intervals over problems. Mode mrsa also runs its controls (tails of another problem, and empty
    ones); beside it, majority gets as many generated tokens.
    """
    from openzaya.evals import print_report
    from openzaya.evals.progress import live_progress

    source = Source.of(model, backend, backend_model, api_key_env)
    specification = Path(benches[0]) if benches[0].endswith(".toml") else None
    if specification is not None:
        others = {
            "another BENCH": len(benches) > 1 or None, "--model": model, "--backend": backend, "--mode": mode,
            "--preset": preset, "--samples": samples, "--limit": limit, "--seed": seed,
        }  # fmt: skip
        _refuse_beside(specification, [name for name, value in others.items() if value is not None and value != []])
    elif only:
        raise InputError("--only chooses among the benchmarks of a .toml specification; name the families themselves")

    spec = None
    if specification is not None:
        spec = _specification(specification, out, yes=yes, offline=offline, quiet=quiet)
    else:
        source = source.ready(yes=yes, offline=offline, quiet=quiet)

    def run(on_progress: OnProgress | None) -> Report:
        from openzaya.evals import evaluate as evaluate_spec
        from openzaya.evals import evaluate_named

        if spec is not None:
            return evaluate_spec(spec, only=only or [], on_progress=on_progress)

        return evaluate_named(
            benches,
            model=source.model,
            backend=source.urls or None,
            backend_model=source.backend_model,
            api_key_env=source.api_key_env,
            modes=mode or ["single"],
            preset=preset or "auto",
            samples=samples,
            limit=limit,
            out=out,
            seed=seed or 0,
            on_progress=on_progress,
        )

    try:
        if quiet:
            report = run(None)
        else:
            with live_progress(sys.stderr) as on_progress:
                report = run(on_progress)
    except KeyboardInterrupt as error:
        kept = (
            f"finished rollouts are kept in {out}; the same command goes on" if out else "nothing was kept; see --out"
        )
        error.add_note(kept)
        raise
    if as_json:
        print(report.model_dump_json())
    else:
        print_report(report)


def _specification(path: Path, out: Path | None, *, yes: bool, offline: bool, quiet: bool) -> EvalSpec:
    """The specification in `path`, with models of the hub as the folders that they are in from now on."""
    from openzaya.evals import load_spec
    from openzaya.evals.sources import finding

    spec = load_spec(path)
    models = dict(spec.models)
    for name, model in spec.models.items():
        if model.backend:
            continue
        folder = hub_model_folder(model.source, yes=yes, offline=offline, quiet=quiet, **finding(model))
        if folder is not None:
            models[name] = model.model_copy(update={"source": folder})
    return spec.model_copy(update={"models": models} | ({} if out is None else {"out": out}))


def _refuse_beside(specification: Path, given: list[str]) -> None:
    if given:
        raise InputError(f"{given[0]} cannot be given beside {specification}, which says it all but --out and --only")
