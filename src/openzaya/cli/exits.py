"""How the program ends: which failure is which exit code, and the one sentence that a person reads about it."""

from __future__ import annotations

import importlib.metadata
import sys
import traceback
from enum import IntEnum

import typer


class Code(IntEnum):
    """The exit codes of the contract; 1 is left for what nobody foresaw."""

    ANSWERED = 0
    UNFORESEEN = 1
    BAD_INPUT = 2
    """Bad arguments, or a model that cannot be read. The parser of arguments uses the same number."""
    BACKEND_FAILED = 3
    ENDED_EARLY = 4
    """A budget or a deadline ended the run; the best answer so far was printed."""
    INTERRUPTED = 130


class InputError(ValueError):
    """Arguments that cannot be used, said in one sentence."""


def explain(error: BaseException) -> tuple[str, Code]:
    """The sentence and the exit code of a failure."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", Code.INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return _missing(error.name), Code.BAD_INPUT
    if isinstance(error, ValueError):
        return _sentence(error), Code.BAD_INPUT
    if isinstance(error, OSError):
        return _file_error(error), Code.BAD_INPUT
    if _is_backend_failure(error):
        return _sentence(error), Code.BACKEND_FAILED
    if isinstance(error, MemoryError):
        return "this machine ran out of memory; give a smaller model or a smaller preset", Code.BACKEND_FAILED
    return f"unforeseen {type(error).__name__}: {_sentence(error)} (openzaya --debug shows where)", Code.UNFORESEEN


def leave(error: BaseException, *, debug: bool = False) -> typer.Exit:
    """Say on standard error what went wrong, with the error's notes; returns the exception that ends the program."""
    if _is_one_of(error, ("openzaya.train.launch", "AnotherRankFailed")):
        return typer.Exit(Code.UNFORESEEN)  # that rank says what went wrong
    if debug:
        traceback.print_exception(error)
    sentence, code = explain(error)
    for line in (sentence, *getattr(error, "__notes__", ())):
        say(f"openzaya: {line}")
    return typer.Exit(code)


def say(sentence: str) -> None:
    """One line on standard error."""
    print(sentence, file=sys.stderr, flush=True)


def _is_backend_failure(error: BaseException) -> bool:
    return _is_one_of(
        error,
        ("openzaya.backends.protocol", "BackendError"),
        ("openzaya.mrsa.course", "MrsaError"),
        ("openzaya.engine.worker", "EngineError"),
    )


def _is_one_of(error: BaseException, *types: tuple[str, str]) -> bool:
    # Looked up among the modules in use: whoever has raised one of these has imported it.
    return any(
        module in sys.modules and isinstance(error, getattr(sys.modules[module], name)) for module, name in types
    )


def _missing(module: str) -> str:
    extra = {
        "torch": "local",
        "safetensors": "local",
        "math_verify": "eval",
        "transformers": "dev",
        "starlette": "serve",
        "uvicorn": "serve",
        "prometheus_client": "serve",
    }.get(module.partition(".")[0])
    if extra is None:
        return f"the Python package {module} is missing; install openzaya {_version()} again"
    return f"this needs the Python package {module}; install it with: pip install 'openzaya[{extra}]'" + (
        " (or use a server: --backend URL)" if extra == "local" else ""
    )


def _version() -> str:
    return importlib.metadata.version("openzaya")


def _file_error(error: OSError) -> str:
    reason = error.strerror or _sentence(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _sentence(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
