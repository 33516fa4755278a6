"""One evaluation runner: problems by seed and JSON-lines files, any backend, Markovian RSA beside its controls.

`evaluate` runs a specification, `evaluate_named` what `openzaya eval` names; both return a `Report`.
"""

from openzaya.evals.evaluate import aevaluate, evaluate
from openzaya.evals.named import evaluate_named
from openzaya.evals.progress import Progress, live_progress
from openzaya.evals.report import Report
from openzaya.evals.spec import EvalError, EvalSpec, load_spec, make_spec
from openzaya.evals.tables import markdown, print_report

__all__ = [
    "EvalError",
    "EvalSpec",
    "Progress",
    "Report",
    "aevaluate",
    "evaluate",
    "evaluate_named",
    "live_progress",
    "load_spec",
    "make_spec",
    "markdown",
    "print_report",
]
