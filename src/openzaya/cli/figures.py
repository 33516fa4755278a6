"""Numbers and texts as people read them in a terminal."""

from __future__ import annotations

import re

# All control characters but tab and line feed: the text of a model must not steer a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def duration(seconds: float) -> str:
    """ "4.2 s", "48 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if whole < 3570:
        return f"{round(whole / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"


def rate(per_second: float) -> str:
    """Tokens a second: "7.4", "812", "1,240"."""
    return f"{per_second:.1f}" if per_second < 10 else f"{per_second:,.0f}"


def byte_size(size: float) -> str:
    """In decimal units, as disks and model pages give them: "640 B", "9.8 MB", "17.7 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def flops(number: float) -> str:
    """Floating-point operations: "512", "8.75 GFLOP", "143 TFLOP"."""
    for unit in ("", " kFLOP", " MFLOP", " GFLOP", " TFLOP", " PFLOP"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} EFLOP"


def count(number: int) -> str:
    """ "1,283", or in millions, billions and trillions where it is long: "8.84 billion"."""
    if number >= 1e12:
        return f"{number / 1e12:.2f} trillion"
    if number >= 1e9:
        return f"{number / 1e9:.2f} billion"
    return f"{number / 1e6:.2f} million" if number >= 1e6 else f"{number:,}"


def shortened(text: str, limit: int) -> str:
    """`text` on one line of at most `limit` characters."""
    line = for_terminal(" ".join(text.split()))
    return line if len(line) <= limit else line[: max(0, limit - 1)] + "…"


def for_terminal(text: str) -> str:
    """`text` with a visible sign in place of every control character but tabs and line feeds."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
