from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openzaya.data.corpora import CorpusRecipe
from openzaya.data.packing import Batch
from openzaya.data.rollouts import Speaker
from openzaya.data.rows import Rows, trimming_report
from openzaya.data.shard_batches import ShardBatches
from openzaya.data.shards import Shards
from openzaya.data.tokenising import write_shards
from openzaya.data.trimming import example_of, trim

ROW = 64


@pytest.fixture(scope="module")
def corpora(speaker: Speaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shards]:
    folder = tmp_path_factory.mktemp("corpora")
    texts = [f"sum {number} " * (number % 40 + 1) for number in range(150)]
    (folder / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    web = CorpusRecipe(format="jsonl", paths=[str(folder / "web.jsonl")], held_out=0.2)
    families = {"sums_list": {"difficulty": [1, 4]}, "arithmetic_chain": {"difficulty": [1, 3]}}
    puzzles = CorpusRecipe(format="problems", documents=300, families=families, held_out=0.2)
    return {
        "web": write_shards("web", web, speaker, folder / "web", shard_tokens=3000),
        "puzzles": write_shards("puzzles", puzzles, speaker, folder / "puzzles", shard_tokens=5000),
    }


def source(corpora: dict[str, Shards], seed: int = 0, rank: int = 0, ranks: int = 1) -> ShardBatches:
    return ShardBatches.open(
        corpora,
        {"web": 0.3, "puzzles": 0.7},
        row=ROW,
        batch_tokens=10 * ROW,
        seed=seed,
        rank=rank,
        ranks=ranks,
        microbatch_tokens=4 * ROW,
    )


def rows_of(batches: list[Batch]) -> list[tuple[bytes, bytes, bytes]]:
    return [
        (batch.input_ids[row].tobytes(), batch.targets[row].tobytes(), batch.learned[row].tobytes())
        for batch in batches
        for row in range(len(batch.input_ids))
    ]


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(0, 10**6), st.integers(1, 12))
def test_every_world_reads_the_same_step(corpora: dict[str, Shards], seed: int, step: int, ranks: int) -> None:
    alone = rows_of(source(corpora, seed).batches(step))
    shares = [rows_of(source(corpora, seed, rank, ranks).batches(step)) for rank in range(ranks)]
    assert len(alone) == 10
    assert Counter(row for share in shares for row in share) == Counter(alone)


def test_batches_are_of_one_shape_and_no_larger_than_asked(corpora: dict[str, Shards]) -> None:
    assert [batch.input_ids.shape for batch in source(corpora).batches(3)] == [(4, ROW), (4, ROW), (2, ROW)]


def test_each_document_is_read_once_a_pass_and_corpora_by_weight(corpora: dict[str, Shards]) -> None:
    batches = source(corpora)
    steps = 40
    counts = batches.rows_read(steps)
    assert sum(counts.values()) == 10 * steps
    assert abs(counts["web"] - 0.3 * 10 * steps) <= 1
    read = [batches._row(name, place) for name in corpora for place in range(len(batches.rows[name]))]
    found = sorted(example.ids.tolist() for row in read for example in row)
    expected = []
    for shards in corpora.values():
        for shard in shards.split("train"):
            for document in range(shard.entry.documents):
                ids = shard.ids(document).astype(np.int32)
                if shard.texts[document]:
                    pieces = [ids[start : start + ROW] for start in range(0, len(ids), ROW)]
                    expected += [piece.tolist() for piece in pieces if len(piece) > 1]
                else:
                    trimmed = trim(shard.read(document), ROW, line_break=shards.manifest.line_break)
                    expected += [example_of(trimmed.turns).ids.tolist()] if trimmed.turns else []
    assert found == sorted(expected)


def test_a_second_pass_has_the_same_rows_in_another_order(corpora: dict[str, Shards]) -> None:
    batches = source(corpora)
    count = len(batches.rows["web"])
    first, second = (
        [tuple(example.ids.tobytes() for example in batches._row("web", start + place)) for place in range(count)]
        for start in (0, count)
    )
    assert first != second
    assert sorted(first) == sorted(second)


def test_a_phase_goes_on_where_the_one_before_it_stopped(corpora: dict[str, Shards]) -> None:
    whole, first = source(corpora), source(corpora)
    read = first.rows_read(7)
    later = ShardBatches.open(corpora, {"web": 1}, row=ROW, batch_tokens=10 * ROW, read_before=read)
    assert later._row("web", 0)[0].ids.tolist() == whole._row("web", read["web"])[0].ids.tolist()
    assert later.rows_read(2) == {"web": read["web"] + 20}
    assert later.passes(2)["web"] == (read["web"] + 20) / len(later.rows["web"])


def test_targets_and_masks_are_those_of_the_documents(corpora: dict[str, Shards]) -> None:
    packed = [batch for step in range(4) for batch in source(corpora).batches(step) if batch.document_ids is not None]
    assert packed
    for batch in packed:
        assert batch.document_ids is not None
        same = batch.document_ids[:, 1:] == batch.document_ids[:, :-1]
        assert not batch.learned[:, :-1][~same].any()
        assert (batch.targets[:, :-1] == batch.input_ids[:, 1:])[batch.learned[:, :-1]].all()
        assert not batch.learned[~batch.real].any()


def test_held_out_batches_never_change_and_share_nothing_with_training(corpora: dict[str, Shards]) -> None:
    batches = source(corpora)
    held_out = batches.held_out(10**6)
    assert set(held_out) == {"web", "puzzles"}
    assert rows_of(held_out["web"]) == rows_of(source(corpora, seed=9).held_out(10**6)["web"])
    assert len(rows_of(batches.held_out(3 * ROW)["puzzles"])) == 3
    ranks = [rows_of(source(corpora, rank=rank, ranks=3).held_out(10**6)["web"]) for rank in range(3)]
    assert Counter(row for share in ranks for row in share) == Counter(rows_of(held_out["web"]))
    for shards in corpora.values():
        train, held = (
            {
                shard.ids(document).tobytes()
                for shard in shards.split(split)
                for document in range(shard.entry.documents)
            }
            for split in ("train", "held_out")
        )
        assert held
        assert train.isdisjoint(held)


def test_rows_of_the_other_ways_are_as_their_reports_say(corpora: dict[str, Shards]) -> None:
    shards = corpora["puzzles"]
    documents = shards.manifest.total("train", "documents")
    for overlong in ("trim", "truncate", "drop"):
        rows = Rows.of(shards, "train", 48, overlong)
        examples = [example for number in range(len(rows)) for example in rows.examples(number)]
        assert rows.trimming == trimming_report(shards, 48, overlong)
        assert rows.trimming.conversations == documents
        assert max(map(len, examples)) <= 48
        assert sum(map(len, examples)) == rows.trimming.tokens_left == rows.packing.tokens
        assert len(examples) == documents - rows.trimming.outcomes.get("dropped", 0)
        assert len(rows) == rows.packing.rows
    reports = [trimming_report(shards, 48, overlong) for overlong in ("trim", "truncate", "drop")]
    assert reports[0].outcomes["cut"] > 0
    assert [report.answers_cut > 0 for report in reports] == [False, True, False]


def test_a_longer_row_keeps_what_a_shorter_one_cut(corpora: dict[str, Shards]) -> None:
    left = [Rows.of(corpora["puzzles"], "train", row).trimming.tokens_left for row in (40, 64, 128, 4096)]
    assert left == sorted(left)
    assert left[-1] == corpora["puzzles"].manifest.total("train", "tokens")


def test_rows_are_laid_out_once_and_anew_where_the_shards_changed(speaker: Speaker, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one two three"}\n')
    recipe = CorpusRecipe(format="jsonl", paths=[str(tmp_path / "a.jsonl")], held_out=0)
    rows = Rows.of(write_shards("a", recipe, speaker, tmp_path / "s"), "train", 32)
    when = (rows.folder / "rows.json").stat().st_mtime_ns
    Rows.of(rows.shards, "train", 32)
    assert (rows.folder / "rows.json").stat().st_mtime_ns == when
    manifest = rows.shards.folder / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    Rows.of(rows.shards, "train", 32)
    assert (rows.folder / "rows.json").stat().st_mtime_ns > when


def test_what_cannot_be_read_is_refused(corpora: dict[str, Shards]) -> None:
    with pytest.raises(ValueError, match="'code' has no shards; there are web, puzzles"):
        ShardBatches.open(corpora, {"code": 1}, row=ROW, batch_tokens=ROW)
    with pytest.raises(ValueError, match="nothing to train on in rows of 4; drop to 4 tokens"):
        ShardBatches.open(corpora, {"puzzles": 1}, row=4, batch_tokens=ROW, overlong="drop")
    with pytest.raises(ValueError, match="a row of 1 tokens predicts nothing"):
        ShardBatches.open(corpora, {"web": 1}, row=1, batch_tokens=ROW)
    with pytest.raises(ValueError, match="row 99999 does not exist"):
        source(corpora).rows["web"].examples(99999)
