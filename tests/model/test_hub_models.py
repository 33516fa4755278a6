"""Models of a hub on loopback: made ready as they come, gone on with after accidents, and refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
import subprocess
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from safetensors.torch import load_file, save_file

from hub_models import Follower, write_checkpoint
from hub_server import LONGEST_HEADER, HubServer, Repository, use_hub
from openzaya.model.hub import plan as plan_module
from openzaya.model.hub import preparation, transfer
from openzaya.model.hub.journey import LoggedJourney, Progress
from openzaya.model.hub.kept import prepare, quantised_model
from openzaya.model.hub.places import kept_folder, origin_of
from openzaya.model.hub.plan import MemoryNeed, most_at_once
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.quantise import quantise_checkpoint
from openzaya.model.quantised.scheme import W8

NAME = "org/model"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "native")


@pytest.fixture(scope="module")
def quantised(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a folder quantised on this machine is."""
    folder = tmp_path_factory.mktemp("hub") / "quantised"
    quantise_checkpoint(checkpoint, folder)
    return folder


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub that huggingface_hub speaks to, with the checkpoint on it; everything kept is below `tmp_path`."""
    with HubServer({NAME: Repository.of(checkpoint)}) as server:
        use_hub(server.url, tmp_path, monkeypatch)
        yield server


def shards(hub: HubServer) -> dict[str, int]:
    return {name: len(data) for name, data in hub.repositories[NAME].files.items() if name.endswith(".safetensors")}


def headers(hub: HubServer) -> int:
    """Bytes that reading the headers of all shards takes."""
    return sum(min(size, LONGEST_HEADER) for size in shards(hub).values())


def same_weights(folder: Path, other: Path) -> bool:
    return (folder / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def working_folder() -> Path:
    folder = kept_folder(NAME)
    return folder.with_name(f".{folder.name}.preparing")


# ---- the result ----


@pytest.mark.parametrize("layout", ["native", "legacy"])
@pytest.mark.parametrize("shard_bytes", [600_000, 150_000, 5_000_000])
def test_what_is_kept_is_what_quantising_the_folder_gives(hub, tmp_path, layout, shard_bytes):
    source = write_checkpoint(tmp_path / "source", layout, shard_bytes)
    quantise_checkpoint(source, tmp_path / "q")
    hub.repositories[NAME] = Repository.of(source)
    follower = Follower()
    folder = quantised_model(NAME, journey=follower)
    assert folder == kept_folder(NAME)
    assert same_weights(folder, tmp_path / "q")
    assert (folder / "config.json").read_text() == (tmp_path / "q" / "config.json").read_text()
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    Container(folder).verify()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    last = follower.steps[-1]
    assert (last.downloaded, last.written) == (last.to_download, last.to_write)
    assert last.to_download == sum(shards(hub).values())


def test_compressed_experts_are_quantised_as_they_come(hub, tmp_path, draw_config, draw_model):
    from test_compressed_checkpoints import write_compressed

    shape = {"hidden_size": 32, "moe_intermediate_size": 64, "num_experts": 3, "num_attention_heads": 8, "head_dim": 8}
    config = draw_config(400, num_hidden_layers=2, num_key_value_heads=2, tie_word_embeddings=True, **shape)
    write_compressed(draw_model(config, seed=400), tmp_path / "m", "float-quantized")
    quantise_checkpoint(tmp_path / "m", tmp_path / "q")
    hub.repositories[NAME] = Repository.of(tmp_path / "m")
    assert same_weights(quantised_model(NAME, journey=Follower()), tmp_path / "q")


def test_what_is_quantised_on_the_hub_is_kept_as_it_is(hub, quantised):
    hub.repositories[NAME] = Repository.of(quantised)
    folder = quantised_model(NAME, journey=Follower())
    assert same_weights(folder, quantised)
    assert (folder / "config.json").read_bytes() == (quantised / "config.json").read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(ValueError, match="is quantised on the hub already"):
        prepare(NAME, folder.parent / "other", W8, journey=Follower())


def test_a_head_beside_tied_embeddings_is_compared_wherever_the_two_lie(hub, checkpoint, quantised, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    embedding = load_file(tmp_path / "m" / "model-00001-of-00005.safetensors")["model.embed_tokens.weight"]
    save_file({"lm_head.weight": embedding}, tmp_path / "m" / "zhead.safetensors")
    index["weight_map"]["lm_head.weight"] = "zhead.safetensors"
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.repositories[NAME] = Repository.of(tmp_path / "m")
    folder = quantised_model(NAME, journey=Follower())
    assert same_weights(folder, quantised)
    shutil.rmtree(folder)
    save_file({"lm_head.weight": embedding + 1}, tmp_path / "m" / "zhead.safetensors")
    hub.repositories[NAME] = Repository.of(tmp_path / "m")
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        quantised_model(NAME, journey=Follower())


def test_a_model_can_be_made_ready_in_another_scheme_and_place(hub, checkpoint, tmp_path):
    quantise_checkpoint(checkpoint, tmp_path / "q", W8)
    assert prepare(NAME, tmp_path / "w8", W8, journey=Follower()) == sum(shards(hub).values())
    assert same_weights(tmp_path / "w8", tmp_path / "q")
    assert not kept_folder(NAME).exists()


# ---- the second run ----


def test_a_second_run_downloads_nothing(hub):
    quantised_model(NAME, journey=Follower())
    hub.asked.clear()
    follower = Follower()
    quantised_model(NAME, journey=follower)
    assert [asked.file for asked in hub.asked] == [None], "only the listing is looked at"
    assert not follower.plans
    assert not follower.told


def test_a_kept_model_runs_without_a_network_and_offline_asks_nothing(hub, tmp_path, monkeypatch):
    folder = quantised_model(NAME, journey=Follower())
    hub.asked.clear()
    assert quantised_model(NAME, journey=Follower(), offline=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert quantised_model(NAME, journey=Follower()) == folder
    assert not hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_hub("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert quantised_model(NAME, journey=Follower()) == folder


def test_other_weights_on_the_hub_are_told_and_never_mixed_in(hub, tmp_path):
    folder = quantised_model(NAME, journey=Follower())
    before = (folder / WEIGHTS).read_bytes(), origin_of(folder)
    hub.repositories[NAME].files["README.md"] = b"Another card."
    follower = Follower()
    quantised_model(NAME, journey=follower)
    assert not follower.told, "the weights are the same"
    hub.repositories[NAME] = Repository.of(write_checkpoint(tmp_path / "newer", seed=2))
    assert quantised_model(NAME, journey=follower) == folder
    assert ((folder / WEIGHTS).read_bytes(), origin_of(folder)) == before
    (told,) = follower.told
    assert hub.repositories[NAME].commit[:7] in told
    assert before[1]["commit"][:7] in told
    assert f"remove {folder} and run the same command" in told
    shutil.rmtree(folder)
    quantise_checkpoint(tmp_path / "newer", tmp_path / "q")
    assert same_weights(quantised_model(NAME, journey=follower), tmp_path / "q")


def test_a_kept_file_that_is_cut_short_is_refused_with_the_remedy(hub):
    folder = quantised_model(NAME, journey=Follower())
    os.truncate(folder / WEIGHTS, 1000)
    with pytest.raises(ValueError, match=r"is cut short \(1,000 of [\d,]+ bytes\); remove .*, and the same command"):
        quantised_model(NAME, journey=Follower())


# ---- accidents on the way ----


@pytest.mark.parametrize("written", [0, 100_000, 250_000])
def test_an_interrupted_run_goes_on_and_no_finished_shard_comes_twice(hub, quantised, written):
    def interrupt(progress: Progress) -> None:
        if progress.written > written:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        quantised_model(NAME, journey=Follower(interrupt))
    assert any("the same command goes on from there" in note for note in caught.value.__notes__)
    follower = Follower()
    assert same_weights(quantised_model(NAME, journey=follower), quantised)
    whole = [asked for asked in hub.asked if asked.file in shards(hub) and asked.range != "bytes=0-65535"]
    begun = [asked.file for asked in whole if asked.range.startswith("bytes=0-")]
    assert set(begun) == set(shards(hub))
    assert len(begun) <= len(shards(hub)) + 1, "only one that was stopped before its first byte begins twice"
    assert follower.steps[0].written > 0 or written == 0


def test_tensors_that_are_done_are_not_quantised_again(hub, monkeypatch):
    from openzaya.model.quantised import quantise

    rounded: list[int] = []
    original = quantise.quantise
    monkeypatch.setattr(quantise, "quantise", lambda chunk, *a, **k: rounded.append(1) or original(chunk, *a, **k))

    def interrupt(progress: Progress) -> None:
        if progress.written > 250_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantised_model(NAME, journey=Follower(interrupt))
    first = len(rounded)
    quantised_model(NAME, journey=Follower())
    second = len(rounded) - first
    rounded.clear()
    shutil.rmtree(kept_folder(NAME))
    quantised_model(NAME, journey=Follower())
    assert first + second <= len(rounded) + 4, "at most the matrix in progress, of four experts, is made twice"


def test_a_torn_record_and_a_torn_download_do_no_harm(hub, quantised):
    def interrupt(progress: Progress) -> None:
        if progress.written > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantised_model(NAME, journey=Follower(interrupt))
    with (working_folder() / "done.jsonl").open("a") as record:
        record.write('{"model.layers.0.self')
    parts = list((working_folder() / "hub").glob("*.part"))
    for part in parts:
        part.write_bytes(b"\0" * 5000)
    if parts:
        with pytest.raises(ValueError, match=r"was damaged on its way .* the same command downloads it again"):
            quantised_model(NAME, journey=Follower())
    assert same_weights(quantised_model(NAME, journey=Follower()), quantised)


def test_a_cut_connection_is_taken_up_where_it_broke(hub, quantised, monkeypatch):
    monkeypatch.setattr(transfer, "_pause", lambda _lost: 0.0)
    follower = Follower(at_begin=lambda _plan: setattr(hub, "cut_after", 100_000))
    assert same_weights(quantised_model(NAME, journey=follower), quantised)
    assert hub.cut_after is None, "it broke"
    starts = [int(asked.range[6:].partition("-")[0]) for asked in hub.asked if asked.file in shards(hub)]
    assert any(start > 0 for start in starts)


def test_a_server_without_ranges_serves_too_and_a_cut_file_begins_anew(hub, quantised, monkeypatch):
    monkeypatch.setattr(transfer, "_pause", lambda _lost: 0.0)
    hub.ranges = False
    follower = Follower(at_begin=lambda _plan: setattr(hub, "cut_after", 300_000))
    assert same_weights(quantised_model(NAME, journey=follower), quantised)
    assert hub.cut_after is None, "it broke"
    assert follower.steps[-1].downloaded == follower.steps[-1].to_download


def test_responses_shorter_than_asked_for_are_gone_on_from_and_empty_ones_end_it(hub, quantised, monkeypatch):
    monkeypatch.setattr(transfer, "_pause", lambda _lost: 0.0)
    empty = Follower(at_begin=lambda _plan: setattr(hub, "most_bytes", 0))
    with pytest.raises(ValueError, match="the server ended it early"):
        quantised_model(NAME, journey=empty)
    short = Follower(at_begin=lambda _plan: setattr(hub, "most_bytes", 150_000))
    hub.most_bytes = None
    assert same_weights(quantised_model(NAME, journey=short), quantised)


def test_a_connection_that_stays_lost_ends_with_how_far_it_came(hub, monkeypatch):
    monkeypatch.setattr(transfer, "_pause", lambda _lost: 0.0)

    def leave(progress: Progress) -> None:
        if progress.downloaded > 100_000:
            hub.status = 503

    with pytest.raises(ValueError, match=r"was lost after .* of model-0000.* \(status 503\); the same command goes on"):
        quantised_model(NAME, journey=Follower(leave))
    hub.status = None
    quantised_model(NAME, journey=Follower())


def test_a_shard_with_another_hash_is_refused_removed_and_downloaded_again(hub, quantised):
    name = sorted(shards(hub))[1]
    good = hub.repositories[NAME].files[name]
    hub.repositories[NAME].stated_hashes[name] = hashlib.sha256(good).hexdigest()
    bad = bytearray(good)
    bad[-1] ^= 1
    commit = hub.repositories[NAME].commit
    hub.repositories[NAME].files[name] = bytes(bad)
    with pytest.raises(ValueError, match=f"{name} of {NAME} was damaged on its way .* downloads it again"):
        quantised_model(NAME, journey=Follower())
    hub.repositories[NAME].files[name] = good
    assert hub.repositories[NAME].commit == commit
    assert same_weights(quantised_model(NAME, journey=Follower()), quantised)


def test_a_revision_that_changes_on_the_way_begins_anew(hub, tmp_path):
    def interrupt(progress: Progress) -> None:
        if progress.written > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantised_model(NAME, journey=Follower(interrupt))
    hub.repositories[NAME] = Repository.of(write_checkpoint(tmp_path / "newer", seed=2))
    quantise_checkpoint(tmp_path / "newer", tmp_path / "q")
    assert same_weights(quantised_model(NAME, journey=Follower()), tmp_path / "q")


def test_of_two_processes_one_works_and_the_other_finds_it_done(hub):
    halted, go_on = threading.Event(), threading.Event()

    def halt(_progress: Progress) -> None:
        halted.set()
        go_on.wait(60)

    first = threading.Thread(target=quantised_model, args=(NAME,), kwargs={"journey": Follower(halt)})
    first.start()
    assert halted.wait(60)
    waiting = Follower()
    waiting_told = threading.Event()
    waiting.tell = lambda sentence: (waiting.told.append(sentence), waiting_told.set())
    second = threading.Thread(target=quantised_model, args=(NAME,), kwargs={"journey": waiting})
    second.start()
    assert waiting_told.wait(60)
    go_on.set()
    first.join(60)
    second.join(60)
    assert waiting.told == [f"another process is making {NAME} ready; waiting for it"]
    assert not waiting.plans
    assert [path.name for path in kept_folder(NAME).parent.iterdir()] == [kept_folder(NAME).name]


# ---- the disk ----


def test_a_shard_goes_when_it_is_used_up_and_no_more_is_taken_than_was_said(hub, monkeypatch):
    most = 0

    def measure(_progress: Progress) -> None:
        nonlocal most
        files = [path for path in working_folder().rglob("*") if path.suffix in (".safetensors", ".part")]
        with_sizes = [path.stat().st_size for path in files if path.exists()]
        most = max(most, sum(with_sizes))

    follower = Follower(measure)
    quantised_model(NAME, journey=follower)
    assert 0.6 * follower.plans[0].disk_bytes < most <= follower.plans[0].disk_bytes
    assert most < sum(shards(hub).values())


def test_the_room_is_that_of_the_shards_which_lie_there_at_once():
    sizes = {"a": 5, "b": 3, "c": 4}
    apart = [frozenset("a"), frozenset("b"), frozenset("c")]
    assert most_at_once("abc", sizes, apart, set(), ahead=False) == 5
    assert most_at_once("abc", sizes, apart, set(), ahead=True) == 8
    spanning = [frozenset("a"), frozenset("ab"), frozenset("bc")]
    assert most_at_once("abc", sizes, spanning, set(), ahead=False) == 8
    assert most_at_once("abc", sizes, [frozenset("ac"), *apart], set(), ahead=False) == 9
    assert most_at_once("bc", sizes, [frozenset("bc")], {"a", "b"}, ahead=False) == 8


def _free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda _path: usage(10**12, 0, count))


def test_too_little_disk_is_said_before_a_shard_is_downloaded(hub, monkeypatch):
    _free(monkeypatch, 500_000)
    with pytest.raises(ValueError, match=r"needs .* of disk while it is made ready and 500\.0 kB are free at .*XDG_"):
        quantised_model(NAME, journey=Follower())
    assert hub.sent() == headers(hub)


def test_with_less_disk_one_shard_lies_there_at_a_time(hub, quantised, monkeypatch):
    follower = Follower()
    quantised_model(NAME, journey=follower)
    shutil.rmtree(kept_folder(NAME))
    _free(monkeypatch, follower.plans[0].disk_bytes - 1)
    assert same_weights(quantised_model(NAME, journey=follower), quantised)
    assert follower.plans[1].disk_bytes < follower.plans[0].disk_bytes


@pytest.mark.parametrize("room", [200_000, 900_000])
def test_a_disk_that_fills_up_is_told_and_the_next_run_goes_on(hub, quantised, tmp_path, monkeypatch, room):
    """200 kB do not hold the result, 900 kB not the shards beside it."""
    cache = tmp_path / "cache"
    cache.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", cache], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with monkeypatch.context() as patch:
            _free(patch, 10**12)
            with pytest.raises(
                ValueError, match=r"the disk of .* is full after .*; make room there, and the same comm"
            ):
                quantised_model(NAME, journey=Follower())
        came = hub.sent() - headers(hub)
        subprocess.run(["mount", "-o", "remount,size=20m", cache], check=True)
        assert same_weights(quantised_model(NAME, journey=Follower()), quantised)
        assert hub.sent() <= sum(shards(hub).values()) + 2 * headers(hub) + LONGEST_HEADER + 2**21
        assert room < 500_000 or came > 0
    finally:
        subprocess.run(["umount", cache], check=True)


# ---- what another program has ----


def test_shards_in_the_cache_of_huggingface_hub_are_read_there_and_stay(hub, quantised):
    snapshot = Path(snapshot_download(NAME))
    hub.asked.clear()
    follower = Follower()
    assert same_weights(quantised_model(NAME, journey=follower), quantised)
    assert hub.sent() == headers(hub), "only the headers were read"
    assert follower.plans[0].download_bytes == 0
    assert {path.name for path in snapshot.glob("*.safetensors")} == set(shards(hub))
    for path in snapshot.glob("*.safetensors"):
        assert path.stat().st_size == shards(hub)[path.name]


def test_a_damaged_file_in_that_cache_is_not_believed(hub, quantised):
    snapshot = Path(snapshot_download(NAME))
    name = sorted(shards(hub))[3]
    damaged = (snapshot / name).resolve()
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    hub.asked.clear()
    assert same_weights(quantised_model(NAME, journey=Follower()), quantised)
    assert hub.sent() == headers(hub) + shards(hub)[name]


# ---- refusals ----


def refusal(**options: object) -> str:
    with pytest.raises(ValueError) as caught:
        quantised_model(NAME, journey=Follower(), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_network_or_offline_the_sentence_says_so(hub, tmp_path, monkeypatch):
    assert "forbids to download it; run it once without" in refusal(offline=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "forbids to download it; run it once without" in refusal()
    assert not hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_hub("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert refusal().startswith("127.0.0.1:9 cannot be reached (")
    assert "check the connection, or give a folder" in refusal()


def test_what_the_hub_refuses_is_told_apart(hub, monkeypatch):
    repository = hub.repositories.pop(NAME)
    assert f"{NAME} is neither a folder here nor a model on 127.0.0.1" in refusal()
    hub.repositories[NAME] = repository
    repository.gated = True
    assert refusal().startswith(f"{NAME} is gated; accept its terms on 127.0.0.1")
    repository.gated = False
    hub.status = 403
    assert "refuses access to org/model (403); check the rights of HF_TOKEN" in refusal()
    hub.status = 503
    assert "answered with status 503 for org/model; try again later" in refusal()
    hub.status = None
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repository.gated = True
    quantised_model(NAME, journey=Follower())
    assert {asked.token for asked in hub.asked if asked.sent} == {"Bearer hf_secret"}


def test_a_model_that_is_none_or_another_is_refused_before_a_weight_comes(hub):
    files = hub.repositories[NAME].files
    config = json.loads(files["config.json"])
    files["config.json"] = json.dumps(config | {"model_type": "llama"}).encode()
    assert refusal() == f"{NAME} cannot be run: config.json describes a 'llama' model; openzaya reads 'zaya' models"
    files["config.json"] = json.dumps(config | {"num_hidden_layers": 3, "layer_types": None}).encode()
    assert "lacks model.layers.2." in refusal()
    files["config.json"] = json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}).encode()
    assert "in a way that openzaya does not read" in refusal()
    files["config.json"] = json.dumps(config).encode()
    name = sorted(shards(hub))[0]
    shard = files.pop(name)
    assert refusal() == f"{NAME} lacks {name}, which its model.safetensors.index.json names; tell its author"
    files[name] = shard[:-100]
    assert f"{name} of {NAME} is no whole safetensors file" in refusal()
    files[name] = struct.pack("<Q", 10**12) + shard[8:]
    assert "is no whole safetensors file" in refusal()
    assert not working_folder().exists(), "a refusal leaves nothing"
    for absent in [*shards(hub), "model.safetensors.index.json"]:
        del files[absent]
    assert "has no config.json with model.safetensors or model.safetensors.index.json" in refusal()
    assert hub.sent() <= 10 * LONGEST_HEADER * 5


def test_a_shape_that_the_scheme_cannot_hold_is_refused_with_what_to_do(hub, tmp_path, draw_config, draw_model):
    from openzaya.model.checkpoint import save_model

    save_model(draw_model(draw_config(3, hidden_size=20), seed=3), tmp_path / "m")
    hub.repositories[NAME] = Repository.of(tmp_path / "m")
    assert f"run it as it is: openzaya convert {NAME} FOLDER, and give that folder" in refusal()


# ---- what is said before ----


def test_the_plan_has_what_it_will_take(hub, monkeypatch):
    follower = Follower()
    monkeypatch.setattr(preparation, "_MEASURED_FROM", 1000)
    monkeypatch.setattr(preparation, "memory_bytes", lambda: (10**10, 6 * 10**9))
    quantised_model(NAME, journey=follower, need=lambda _config, size: MemoryNeed(size, 4 * 10**9))
    (plan,) = follower.plans
    assert plan.download_bytes == sum(shards(hub).values())
    assert plan.kept_bytes == (kept_folder(NAME) / WEIGHTS).stat().st_size
    assert plan.bytes_per_second
    assert plan.seconds is not None
    text = "\n".join(plan.lines())
    assert f"download  {plan.download_bytes / 1e6:.1f} MB from 127.0.0.1" in text
    assert " MB at most, 345.3 kB in the end in w4 in groups of 32; " in text
    assert "memory    345.3 kB of weights and up to 4.0 GB of state; 6.0 GB are available" in text
    assert "(an estimate)" in text
    assert f"kept in   {kept_folder(NAME)}" in text


def test_too_little_memory_ends_it_before_a_shard_comes(hub, monkeypatch, caplog):
    monkeypatch.setattr(preparation, "memory_bytes", lambda: (10**9, 600_000_000))
    caplog.set_level(logging.INFO, logger="openzaya.hub")

    def need(_config: object, _size: int) -> MemoryNeed:
        return MemoryNeed(5 * 10**9, 4 * 10**9)

    with pytest.raises(ValueError, match=r"needs 5\.0 GB of weights and up to 4\.0 GB of state; 600\.0 MB are avail"):
        quantised_model(NAME, journey=LoggedJourney(), need=need)
    assert "NOT ENOUGH" in caplog.text
    assert hub.sent() == headers(hub)


def test_a_kept_model_that_memory_does_not_hold_is_told(hub, monkeypatch):
    from openzaya.model.hub import kept

    quantised_model(NAME, journey=Follower())
    monkeypatch.setattr(kept, "memory_bytes", lambda: (10**9, 600_000_000))
    follower = Follower()
    quantised_model(NAME, journey=follower, need=lambda _config, _size: MemoryNeed(10**9, 0))
    assert follower.told == [
        f"{NAME} has 1.0 GB of weights and up to 0 B of state; 600.0 MB are available: it will run from the disk, very "
        "slowly"
    ]
