"""`openzaya bench train`: our training step beside transformers' ZAYA and a dense Llama."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from openzaya.cli.bench import (
    JsonOption,
    RepeatsOption,
    SaveOption,
    console_for_figures,
    finish,
    follow_rounds,
    seconds,
    spread,
)


def train(
    ctx: typer.Context,
    shape: Annotated[
        str, typer.Argument(metavar="SHAPE", help="small, tiny, zaya1-8b or zaya1-74b, with random weights.")
    ] = "small",
    rows: Annotated[int, typer.Option(metavar="N", help="Rows of a step.")] = 4,
    row: Annotated[int, typer.Option(metavar="N", help="Tokens of a row, one document each.")] = 256,
    dtype: Annotated[
        str, typer.Option(metavar="float32|bfloat16", help="Of forward and backward, for all alike.")
    ] = "float32",
    peers: Annotated[bool, typer.Option(help="Measure transformers' ZAYA and Llama too.")] = True,
    checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="In our blocks, where memory asks for it.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, or what torch calls an accelerator: cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Of torch; its own choice where not given.")] = None,
    repeats: RepeatsOption = 5,
    as_json: JsonOption = False,
    save: SaveOption = None,
) -> None:
    """Measure training: tokens a second of forward and backward, and of the optimizer behind them, against peers.

    Peers read the same tokens; transformers' ZAYA starts from our weights, in the fastest of its backends.
    """
    from openzaya.bench.record import machine
    from openzaya.train.speed import Settings, measure_training

    settings = Settings(
        shape=shape,
        rows=rows,
        row=row,
        dtype=dtype,
        repeats=repeats,
        peers=peers,
        checkpointing=checkpointing,
        device=device,
        threads=threads,
    )
    facts: dict[str, Any] = {"machine": machine(), "settings": asdict(settings)}
    with follow_rounds("train") as progress:
        facts |= measure_training(settings, progress)
    finish(ctx, "train", facts, as_json=as_json, save=save, show=_show)


def _show(report: dict[str, Any]) -> None:
    from rich.table import Table

    console, settings = console_for_figures(), report["settings"]
    console.print(
        f"{settings['shape']} in {settings['dtype']}, {settings['rows']} rows of {settings['row']:,}, "
        f"{report['threads']} threads on {settings['device']}"
    )
    table = Table(box=None, padding=(0, 2))
    table.add_column("")
    for column in ("parameters", "tokens/s", "we are faster", "optimizer", "tokens/s with it", "we are faster"):
        table.add_column(column, justify="right")
    for name, case in report["cases"].items():
        table.add_row(
            name,
            f"{case['parameters'] / 1e6:,.1f} M",
            spread(case["tokens_a_second"]),
            f"{spread(case['openzaya_times_faster'])} x",
            seconds(case["optimizer_seconds"]),
            spread(case["tokens_a_second_with_optimizer"]),
            f"{spread(case['openzaya_times_faster_with_optimizer'])} x",
        )
    console.print(table)
    peak = {name: value / 1e9 for name, value in report["matmul_peak"].items()}
    share = {name: 100 * value for name, value in report["utilisation"].items()}
    console.print(f"openzaya uses {spread(share)} % of {spread(peak)} GFLOP/s, the matmul peak of this run")
    if backends := report["cases"].get("transformers ZAYA"):
        console.print(
            f"transformers' ZAYA: experts {backends['experts']}, attention {backends['attention']}; first losses "
            f"{report['cases']['openzaya']['first_loss']:.6f} and {backends['first_loss']:.6f}"
        )
