"""A run as one HTML file that needs nothing else: the page's own drawing, with the records inside it.

Needs nothing of the service, so that `openzaya solve` can draw a journal where no service is installed.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

import openzaya
from openzaya.mrsa.journal import Journal
from openzaya.serve.run_records import Record, records_of

STYLE = "style.css"
DRAWING = ("elements.js", "mathematics.js", "markdown.js", "run.js", "picture.js", "reading.js", "account.js")
"""The scripts that draw a run, in their order; the page and every exported file use the same ones."""

_BREAKS_OUT = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


@cache
def page_file(name: str) -> str:
    """The text of a file of the page."""
    return resources.files("openzaya.serve").joinpath("page", name).read_text(encoding="utf-8")


async def page_of(journal: Journal) -> str:
    """The file that shows a kept run, its whole texts included; a run that has not ended is shown as far as it got."""
    return page_from(await records_of(journal, whole=True))


def page_from(records: Sequence[Record]) -> str:
    """The file that shows these records.

    Its policy lets nothing run but the scripts that are named by their hashes, and nothing be fetched at all.
    """
    style = page_file(STYLE)
    script = "\n".join(page_file(name) for name in (*DRAWING, "exported.js"))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    values = {
        "policy": policy,
        "title": html.escape(_title(records)),
        "version": html.escape(openzaya.__version__),
        "style": style,
        "records": json_in_script(list(records)),
        "script": script,
    }
    before, *pieces = page_file("exported.html").split("{{")
    names = [piece.split("}}", 1) for piece in pieces]
    return before + "".join(values[name] + after for name, after in names)


def json_in_script(value: object) -> str:
    """A value as JSON that no parser of HTML can take for the end of its element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text
    return text.translate(_BREAKS_OUT)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _title(records: Sequence[Record]) -> str:
    turns = records[0]["messages"] if records else []
    contents = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    text = contents[-1] if contents and isinstance(contents[-1], str) else "A run"
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
