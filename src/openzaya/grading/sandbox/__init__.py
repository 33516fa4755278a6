"""The sandbox: the only place where generated code runs.

`run_code` and `run_tests` confine a program with bubblewrap, else with Linux namespaces, else refuse;
`describe_isolation` says what holds on this machine, as measured by a probe.
"""

from openzaya.grading.sandbox.code import SandboxResult, WeakSandboxError, run_code
from openzaya.grading.sandbox.code_tests import (
    Assertion,
    CodeOutcome,
    CodeReport,
    CodeTest,
    FunctionCall,
    InputOutput,
    run_tests,
)
from openzaya.grading.sandbox.execution import SandboxError
from openzaya.grading.sandbox.isolation import Guard, Isolation, describe_isolation

__all__ = [
    "Assertion",
    "CodeOutcome",
    "CodeReport",
    "CodeTest",
    "FunctionCall",
    "Guard",
    "InputOutput",
    "Isolation",
    "SandboxError",
    "SandboxResult",
    "WeakSandboxError",
    "describe_isolation",
    "run_code",
    "run_tests",
]
