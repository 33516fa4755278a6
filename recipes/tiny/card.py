"""Put a trained checkpoint and its evaluation into the package: weights, tokenizer, card and raw report.

    python recipes/tiny/card.py runs/zaya1-tiny/aggregation runs/evaluation

A third argument is another folder than the package's. The text of the card is `card.md` beside this file. In it
`{{evaluation}}` becomes the tables of the report, and `{{training}}` and `{{text}}` what the run's log says at the end
of each phase. Nothing in the card is typed by hand that a run could have measured.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from openzaya.evals import Report, markdown
from openzaya.model.checkpoint import convert
from openzaya.train.config import read_train_config

HERE = Path(__file__).resolve().parent
BUNDLED = HERE.parents[1] / "src" / "openzaya" / "bundled" / "zaya1-tiny"


def training_lines(run: Path) -> str:
    """The last report and the working minutes of each finished phase, as a Markdown table."""
    phases: dict[str, dict[str, object]] = {}
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if (run / entry["phase"]).is_dir():
            phases.setdefault(entry["phase"], {}).update(entry)
    rows = ["| phase | steps | loss of a learned token | load entropy | minutes of work |", "|---|---|---|---|---|"]
    for name, last in phases.items():
        minutes = float(str(last["seconds"])) / 60
        rows.append(f"| {name} | {last['steps']} | {last['loss']:.4f} | {last['load_entropy']:.2f} | {minutes:.0f} |")
    return "\n".join(rows)


def text_lines(run: Path) -> str:
    """The held-out loss at the end of each finished phase, by what was read and at that phase's row, as a table."""
    recipe = read_train_config(run / "recipe.toml")
    losses: dict[str, dict[str, float]] = {}
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "held_out" in entry and (run / entry["phase"]).is_dir():
            losses[entry["phase"]] = entry["held_out"]
    names = list(dict.fromkeys(name for found in losses.values() for name in found))
    rows = [f"| phase | row | RoPE base | {' | '.join(names)} |", f"|{'---|' * (3 + len(names))}"]
    for phase in recipe.phases:
        if phase.name in losses:
            cells = [f"{losses[phase.name][name]:.3f}" if name in losses[phase.name] else "-" for name in names]
            base = "as the shape" if phase.rope_base is None else f"{phase.rope_base:,.0f}"
            rows.append(f"| {phase.name} | {phase.row:,} | {base} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main(checkpoint: Path, evaluation: Path, bundled: Path = BUNDLED) -> None:
    report = Report.model_validate_json((evaluation / "report.json").read_text(encoding="utf-8"))
    shutil.rmtree(bundled, ignore_errors=True)
    convert(checkpoint, bundled)
    shutil.copy(evaluation / "report.json", bundled / "evaluation.json")
    card = (HERE / "card.md").read_text(encoding="utf-8")
    run = checkpoint.parent
    for name, lines in (
        ("training", training_lines(run)),
        ("text", text_lines(run)),
        ("evaluation", markdown(report)),
    ):
        card = card.replace("{{" + name + "}}", lines)
    (bundled / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
