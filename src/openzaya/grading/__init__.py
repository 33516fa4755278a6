"""When an answer is right, and the sandbox that runs code to see.

Pure text first (`extract_answer`, `normalise`, `equivalent`, `group_votes`), a killable process for algebra
(`Verifier`), and a confined one for programs (`run_code`, `run_tests`). `grade` puts them together.
"""

from openzaya.grading.equivalence import VoteGroup, equivalent, group_votes
from openzaya.grading.extraction import Task, extract_answer
from openzaya.grading.grader import Grade, grade
from openzaya.grading.normalisation import normalise
from openzaya.grading.sandbox import (
    Assertion,
    CodeOutcome,
    CodeReport,
    CodeTest,
    FunctionCall,
    Guard,
    InputOutput,
    Isolation,
    SandboxError,
    SandboxResult,
    WeakSandboxError,
    describe_isolation,
    run_code,
    run_tests,
)
from openzaya.grading.verifier import Verifier

__all__ = [
    "Assertion",
    "CodeOutcome",
    "CodeReport",
    "CodeTest",
    "FunctionCall",
    "Grade",
    "Guard",
    "InputOutput",
    "Isolation",
    "SandboxError",
    "SandboxResult",
    "Task",
    "Verifier",
    "VoteGroup",
    "WeakSandboxError",
    "describe_isolation",
    "equivalent",
    "extract_answer",
    "grade",
    "group_votes",
    "normalise",
    "run_code",
    "run_tests",
]
