"""Puts what ablations came to into the repository: results, charts, and the tables of docs/training.md.

    python recipes/ablations/publish.py [runs/ablations]

Reads `<name>.json` of every recipe with arms beside this file from the folder of their runs, copies it to
benchmarks/results/ablation-<name>.json, and draws from that the chart docs/images/ablation-<name>.svg and the table
between `<!-- <name> -->` and `<!-- end -->` in docs/training.md. Without a folder it draws anew what is in
benchmarks/results.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from openzaya.train.arm_charts import chart
from openzaya.train.arm_table import results_of, table

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PAGE = REPOSITORY / "docs" / "training.md"
RESULTS = REPOSITORY / "benchmarks" / "results"


def main() -> None:
    """Copy and draw what is there."""
    for name in names():
        kept = RESULTS / f"ablation-{name}.json"
        if len(sys.argv) > 1 and (made := Path(sys.argv[1]) / f"{name}.json").exists():
            kept.write_text(made.read_text(encoding="utf-8"), encoding="utf-8")
        if kept.exists():
            results, figures = results_of(json.loads(kept.read_text(encoding="utf-8")))
            picture = REPOSITORY / "docs" / "images" / f"ablation-{name}.svg"
            picture.write_text(chart(f"ablation {name}", results, figures), encoding="utf-8")
            text = with_results(PAGE.read_text(encoding="utf-8"), name, table(results, figures))
            PAGE.write_text(text, encoding="utf-8")
            print(kept, picture)


def names() -> list[str]:
    """The recipes with arms."""
    return sorted(path.stem for path in HERE.glob("*.toml") if path.stem != "baseline")


def with_results(page: str, name: str, drawn: str) -> str:
    """The page with a table and the chart in their place; raises ValueError where it has no place for them."""
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(page):
        raise ValueError(f"{PAGE} has no place for the table of {name}; put <!-- {name} --> and <!-- end --> there")
    chart = f"\n![ablation {name}](images/ablation-{name}.svg)\n" if drawn else ""
    return place.sub(lambda found: f"{found[1]}{drawn}{chart}{found[2]}", page)


if __name__ == "__main__":
    main()
