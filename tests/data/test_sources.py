from __future__ import annotations

import ast
import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openzaya.data.corpora import CorpusRecipe
from openzaya.data.sources import open_source

ROWS = [{"text": f"document {number}", "other": number} for number in range(23)]
TEXTS = [row["text"] for row in ROWS]


def write_jsonl(path: Path, opened: Callable[..., Any] = open) -> None:
    with opened(path, "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS))


def write_parquet(path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.Table.from_pylist(ROWS), path, row_group_size=5)


def write_arrow_file(path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.Table.from_pylist(ROWS)
    with arrow.OSFile(str(path), "wb") as sink, arrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def write_arrow_stream(path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.Table.from_pylist(ROWS)
    with arrow.OSFile(str(path), "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def write_zst(path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    with arrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS).encode())


KINDS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "jsonl": ("jsonl", "a.jsonl", write_jsonl),
    "jsonl.gz": ("jsonl", "a.jsonl.gz", lambda path: write_jsonl(path, gzip.open)),
    "jsonl.bz2": ("jsonl", "a.jsonl.bz2", lambda path: write_jsonl(path, bz2.open)),
    "jsonl.xz": ("jsonl", "a.jsonl.xz", lambda path: write_jsonl(path, lzma.open)),
    "jsonl.zst": ("jsonl", "a.jsonl.zst", write_zst),
    "parquet": ("parquet", "a.parquet", write_parquet),
    "arrow file": ("arrow", "a.arrow", write_arrow_file),
    "arrow stream": ("arrow", "a.arrow", write_arrow_stream),
    "text": ("text", "a.txt", lambda path: path.write_text("\n--\n".join(TEXTS)) and None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_format_come_in_order_and_go_on_after_any_of_them(kind: str, tmp_path: Path) -> None:
    form, name, write = KINDS[kind]
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / name)
    fields = {"separator": "\n--\n"} if form == "text" else {}
    recipe = CorpusRecipe(format=form, paths=[str(tmp_path / "*" / name)], **fields)  # type: ignore[arg-type]
    source = open_source(recipe)
    found = list(source.rows())
    assert [row["text"] for _position, row in found] == TEXTS + TEXTS
    assert source.done == pytest.approx(1.0)
    for number in (0, 1, 4, 5, 22, 23, 24, 40, 45):
        later = list(open_source(recipe).rows(found[number][0]))
        assert later == found[number + 1 :]


def test_problems_go_on_after_any_of_them() -> None:
    recipe = CorpusRecipe(format="problems", documents=9, families={"sums_list": {}}, seed=4)
    found = list(open_source(recipe).rows())
    assert len(found) == 9
    assert list(open_source(recipe).rows(found[5][0])) == found[6:]
    assert [message["role"] for message in found[0][1]["messages"]] == ["user", "assistant"]


def test_files_come_in_the_order_of_the_patterns_and_each_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n\n")
    recipe = CorpusRecipe(format="jsonl", paths=[str(tmp_path / "c.jsonl"), str(tmp_path / "*.jsonl")])
    rows = [row for _position, row in open_source(recipe).rows()]
    assert [row["text"] for row in rows if row] == ["c", "a", "b"]


def test_the_standard_library_of_this_python_is_text_to_read() -> None:
    (first, second) = open_source(CorpusRecipe(format="text", paths=("{stdlib}/this.py", "{stdlib}/ast.p[y]"))).rows()
    assert first[1]["text"].startswith("s = ")
    assert second[1]["text"] == Path(ast.__file__).read_text(encoding="utf-8")


def test_the_fingerprint_tells_changed_files_and_does_not_mind_where_they_lie(tmp_path: Path) -> None:
    def fingerprint(folder: str, content: str) -> str | None:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.jsonl").write_text(content)
        return open_source(CorpusRecipe(format="jsonl", paths=[str(tmp_path / folder / "*")])).fingerprint()

    first = fingerprint("x", '{"text": "a"}\n')
    assert first == fingerprint("y", '{"text": "a"}\n')
    assert first != fingerprint("x", '{"text": "b"}\n')
    assert open_source(CorpusRecipe(format="jsonl", paths=[str(tmp_path / "z")])).fingerprint() is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b'{"text": "a"}\n{"text": \n', "line 2 of .* is no JSON"), (b"[1]\n", "line 1 of .* is no JSON object")],
)
def test_a_broken_line_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        list(open_source(CorpusRecipe(format="jsonl", paths=[str(tmp_path / "a.jsonl")])).rows())


def test_files_that_are_missing_or_broken_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file matches"):
        list(open_source(CorpusRecipe(format="jsonl", paths=[str(tmp_path / "no*")])).rows())
    (tmp_path / "a.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(ValueError, match=r"a.jsonl.gz cannot be read"):
        list(open_source(CorpusRecipe(format="jsonl", paths=[str(tmp_path / "a.jsonl.gz")])).rows())


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    for library in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=r"needs pyarrow, which is not installed; install openzaya\[train\]"):
        list(open_source(CorpusRecipe(format="parquet", paths=[str(tmp_path / "a.parquet")])).rows())
    with pytest.raises(ValueError, match="needs datasets"):
        list(open_source(CorpusRecipe(format="datasets", dataset="x")).rows())


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_other_files_and_missing_fields_of_columns_are_refused(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"something else altogether")
    with pytest.raises(ValueError, match=r"is no (Parquet|Arrow) file"):
        list(open_source(CorpusRecipe(format=kind, paths=[str(path)])).rows())  # type: ignore[arg-type]
    (write_parquet if kind == "parquet" else write_arrow_file)(path)
    with pytest.raises(ValueError, match="no field 'body'; the fields are text, other"):
        list(open_source(CorpusRecipe(format=kind, paths=[str(path)], text="body")).rows())  # type: ignore[arg-type]


def test_datasets_stream_from_a_folder_and_go_on_after_any_row(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "files").mkdir()
    write_jsonl(tmp_path / "files" / "train.jsonl")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for folder in ("files", "saved"):
        recipe = CorpusRecipe(format="datasets", dataset=str(tmp_path / folder))
        found = list(open_source(recipe).rows())
        assert [row for _position, row in found] == [{"text": text} for text in TEXTS]
        assert list(open_source(recipe).rows(found[7][0])) == found[8:]
    with pytest.raises(ValueError, match="cannot be opened"):
        list(open_source(CorpusRecipe(format="datasets", dataset=str(tmp_path / "none"))).rows())
