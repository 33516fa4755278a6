"""Put a trained checkpoint and its evaluation into the package: weights, tokenizer, card and raw report.

    python recipes/tiny/card.py runs/zaya1-tiny/aggregation runs/evaluation

The text of the card is `card.md` beside this file. In it `{{evaluation}}` becomes the tables of the report, and
`{{training}}` the lines of the run's log that end each phase. Nothing in the card is typed by hand that a run could
have measured.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from openzaya.evals import Report, markdown
from openzaya.model.checkpoint import convert

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


def main(checkpoint: Path, evaluation: Path) -> None:
    report = Report.model_validate_json((evaluation / "report.json").read_text(encoding="utf-8"))
    shutil.rmtree(BUNDLED, ignore_errors=True)
    convert(checkpoint, BUNDLED)
    shutil.copy(evaluation / "report.json", BUNDLED / "evaluation.json")
    card = (HERE / "card.md").read_text(encoding="utf-8")
    card = card.replace("{{training}}", training_lines(checkpoint.parent)).replace("{{evaluation}}", markdown(report))
    (BUNDLED / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
