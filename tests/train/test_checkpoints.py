from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sharded_checkpoints as jobs
import sharded_training as training
from rank_pool import RankPool, rank_pool
from safetensors.torch import load_file

from openzaya.model.checkpoint import load_model
from openzaya.train.checkpoints.export import export_checkpoint
from openzaya.train.checkpoints.storage import CONTENTS
from openzaya.train.sharding.meshes import Degrees

State = dict[str, np.ndarray[Any, Any]]
ALONE = Degrees()


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    with rank_pool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def written(two: RankPool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """Checkpoints of steps 1 and 2 by two ranks that split the experts, and the state at step 2."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    saved, _other = two(jobs.write, folder, Degrees(experts=2), [1, 2])
    return folder, saved


@pytest.fixture
def copied(written: tuple[Path, State], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / "checkpoints"))


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        assert found[name].tobytes() == truth.tobytes(), name


def test_what_two_ranks_saved_one_rank_and_two_take_up_to_the_bit(written: tuple[Path, State], two: RankPool) -> None:
    folder, saved = written
    assert {"master.model.embed_tokens.weight", "moment0.model.norm.weight", "balancing.first"} < saved.keys()
    for step, state, told in [jobs.read(folder, ALONE), *two(jobs.read, folder, Degrees(context=2))]:
        assert (step, told) == (2, [])
        assert_same(state, saved)


def test_one_rank_saves_what_two_take_up(written: tuple[Path, State], two: RankPool, tmp_path: Path) -> None:
    jobs.rewrite(written[0], tmp_path / "again", ALONE)
    for step, state, _told in two(jobs.read, tmp_path / "again", ALONE):
        assert step == 2
        assert_same(state, written[1])


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(written: tuple[Path, State]) -> None:
    folder = written[0] / "step-000000002"
    names = {path.name for path in folder.iterdir()}
    assert names == {"rank-00000.safetensors", "rank-00001.safetensors", CONTENTS}
    assert all(load_file(folder / name) for name in names - {CONTENTS})
    assert json.loads((folder / CONTENTS).read_text().splitlines()[0])["progress"]["step"] == 2


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "rank-00001.safetensors", CONTENTS])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_taken_up(
    file: str, copied: Path, two: RankPool
) -> None:
    damage(copied / "step-000000002" / file)
    for step, _state, told in two(jobs.read, copied, Degrees(experts=2)):
        assert step == 1
        (sentence,) = told
        assert "not what was written" in sentence
        assert "going back to the checkpoint before it" in sentence
    assert (copied / "step-000000002.damaged").is_dir()


def test_a_checkpoint_without_one_of_its_files_is_set_aside(copied: Path) -> None:
    (copied / "step-000000002" / "rank-00001.safetensors").unlink()
    step, _state, (sentence,) = jobs.read(copied, ALONE)
    assert step == 1
    assert "cannot be read" in sentence


def test_a_full_disk_is_refused_with_a_sentence_and_the_old_checkpoint_stays(copied: Path, two: RankPool) -> None:
    shutil.rmtree(copied / "step-000000002")
    for sentence in two(jobs.failing_write, copied, ALONE):
        assert "No space left on device" in sentence
        assert "What was saved before is whole" in sentence
    assert [path.name for path in copied.iterdir()] == ["step-000000001"]
    assert jobs.read(copied, ALONE)[0] == 1


def test_the_last_checkpoints_and_every_kth_are_kept(tmp_path: Path) -> None:
    jobs.write(tmp_path, ALONE, [1, 2, 3, 4, 5, 6], keep_last=2, keep_every=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000003", "step-000000005", "step-000000006"]


def test_what_a_kill_left_half_written_is_not_taken_up_and_goes_with_the_next_save(copied: Path) -> None:
    (copied / "step-000000002").rename(copied / "step-000000002.partial")
    assert jobs.read(copied, ALONE)[0] == 1
    jobs.rewrite(copied, copied, ALONE)
    assert [path.name for path in copied.iterdir()] == ["step-000000001"]


def test_a_checkpoint_of_another_shape_is_refused_naming_the_tensor(copied: Path) -> None:
    learner = training.sharded_learner(training.draw_shape(0, vocab_size=41), ALONE)
    stored, progress = next(jobs.Checkpoints(copied).read(print))
    with pytest.raises(ValueError, match=r"is of another run: master.model.embed_tokens.weight is \(.*\) there"):
        learner.load(stored, progress)


def test_a_description_that_names_files_elsewhere_is_refused(copied: Path) -> None:
    import hashlib

    path = copied / "step-000000002" / CONTENTS
    body = path.read_text().splitlines()[0].replace('"rank-00001.safetensors"', '"../elsewhere"')
    path.write_text(f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n")
    _step, _state, (sentence,) = jobs.read(copied, ALONE)
    assert "'../elsewhere', which is not in its folder" in sentence


def test_a_resumed_run_has_the_losses_of_one_that_was_not_stopped(written: tuple[Path, State], two: RankPool) -> None:
    degrees, nowhere = Degrees(experts=2), written[0] / "nowhere"
    through, _other = two(jobs.losses_after, nowhere, degrees, range(1, 6))
    resumed, _other = two(jobs.losses_after, written[0], degrees, range(3, 6))
    assert resumed == through[2:]


def test_an_exported_checkpoint_is_a_model_of_its_masters(written: tuple[Path, State], tmp_path: Path) -> None:
    folder, saved = written
    for layout in ("native", "legacy"):
        export_checkpoint(folder / "step-000000002", jobs.SHAPE, tmp_path / layout, layout=layout)  # type: ignore[arg-type]
        for name, tensor in load_model(tmp_path / layout, dtype="float32").state_dict().items():
            place = name.split(".")[2] if name.endswith("balancing_biases") else ""
            truth = saved[f"balancing.bias{place}" if place else f"master.{name}"]
            assert tensor.numpy().tobytes() == truth.tobytes(), name


@pytest.mark.slow
def test_checkpoints_go_from_two_ranks_to_four_to_one_and_back_to_two_to_the_bit(
    written: tuple[Path, State], two: RankPool, tmp_path: Path
) -> None:
    with rank_pool(4) as four:
        four(jobs.rewrite, written[0], tmp_path / "four", Degrees(experts=2, context=2))
        four(jobs.rewrite, tmp_path / "four", tmp_path / "other-four", ALONE)
    jobs.rewrite(tmp_path / "other-four", tmp_path / "one", ALONE)
    for _step, state, _told in two(jobs.read, tmp_path / "one", ALONE):
        assert_same(state, written[1])
