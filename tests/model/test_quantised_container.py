"""Containers of quantised weights: from any checkpoint, back to a model, and everything that can be wrong with one."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from openzaya.model import storage
from openzaya.model.checkpoint import checkpoint_layout, convert, load_model, save_model
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.quantised import quantise as quantising
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.header import KEY
from openzaya.model.quantised.matrices import matrices, plain_tensors
from openzaya.model.quantised.packing import dequantise, quantise
from openzaya.model.quantised.quantise import Progress, quantise_checkpoint
from openzaya.model.quantised.scheme import SCHEMES, W4_GROUP_32, W4_GROUP_128, W8

SINGLE = "model.safetensors"
# Rows that are no multiples of a block: a vocabulary of 100, and the halves of the values 16 each inside of qkv.
SHAPE = {
    "vocab_size": 100, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "head_dim": 16, "num_experts": 3, "moe_intermediate_size": 128, "sliding_window": None,
    "layer_types": ("hybrid",) * 2, "tie_word_embeddings": True,
}  # fmt: skip
QKV = "model.layers.1.self_attn.qkv_proj.weight"
EXPERTS = "model.layers.1.mlp.experts.gate_up_proj"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def model(draw_config, draw_model) -> ZayaForCausalLM:
    return draw_model(draw_config(300, **SHAPE), seed=300)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "m"
    save_model(model, folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def quantised(checkpoint, tmp_path) -> Path:
    quantise_checkpoint(checkpoint, tmp_path / "q", W4_GROUP_32)
    return tmp_path / "q"


def rounded(model: ZayaForCausalLM, scheme: Any) -> dict[str, torch.Tensor]:
    """The weights of `model`, those of its quantised matrices rounded one by one."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for matrix in matrices(model.config):
        for part in matrix.parts:
            whole = weights[part.native]
            stack = whole if matrix.experts is not None else whole[None]
            for each in stack:
                each.copy_(dequantise(quantise(each, scheme)))
    return weights


# ---- there and back ----


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_container_loads_as_a_model_of_the_rounded_weights(model, checkpoint, tmp_path, scheme):
    quantise_checkpoint(checkpoint, tmp_path / "q", scheme)
    loaded = load_model(tmp_path / "q")
    expected = rounded(model, scheme)
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert loaded.config == model.config
    assert not loaded.training
    for tensor in plain_tensors(model.config):
        assert torch.equal(found[tensor.native], model.state_dict()[tensor.native])
    with torch.no_grad():
        assert loaded(torch.arange(2, 12)[None]).isfinite().all()


def test_a_quantised_folder_runs_in_bfloat16_too(quantised):
    loaded = load_model(quantised, dtype="bfloat16")
    whole = load_model(quantised)
    assert loaded.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.model.embed_tokens.weight, whole.model.embed_tokens.weight.bfloat16())
    assert loaded.model.layers[0].mlp.gate.balancing_biases.dtype == torch.float32


def test_an_untied_head_is_quantised_beside_the_embedding(draw_config, draw_model, tmp_path):
    model = draw_model(draw_config(301, **{**SHAPE, "tie_word_embeddings": False}), seed=301)
    save_model(model, tmp_path / "m")
    quantise_checkpoint(tmp_path / "m", tmp_path / "q", W8)
    assert torch.equal(load_model(tmp_path / "q").lm_head.weight, rounded(model, W8)["lm_head.weight"])


def test_layout_and_shards_of_the_source_make_no_difference(checkpoint, quantised, tmp_path):
    convert(checkpoint, tmp_path / "legacy", "legacy", max_shard_bytes=100_000)
    assert len(list((tmp_path / "legacy").glob("*.safetensors"))) > 3
    quantise_checkpoint(tmp_path / "legacy", tmp_path / "again", W4_GROUP_32)
    assert (tmp_path / "again" / SINGLE).read_bytes() == (quantised / SINGLE).read_bytes()


def test_chunks_of_the_reader_and_of_the_writer_make_no_difference(checkpoint, quantised, tmp_path, monkeypatch):
    whole = load_model(quantised).state_dict()
    monkeypatch.setattr(quantising, "_CHUNK_ROWS", 32)
    quantise_checkpoint(checkpoint, tmp_path / "again", W4_GROUP_32)
    assert (tmp_path / "again" / SINGLE).read_bytes() == (quantised / SINGLE).read_bytes()
    monkeypatch.setattr("openzaya.model.quantised.container._CHUNK_ROWS", 32)
    again = load_model(quantised).state_dict()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []


def test_a_container_converts_to_a_plain_checkpoint_of_either_layout(quantised, tmp_path):
    expected = load_model(quantised).state_dict()
    for layout in ("native", "legacy"):
        convert(quantised, tmp_path / layout, layout)
        assert checkpoint_layout(tmp_path / layout) == layout
        assert "quantization_config" not in json.loads((tmp_path / layout / "config.json").read_text())
        found = load_model(tmp_path / layout).state_dict()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_weights_of_a_bfloat16_checkpoint_stay_bfloat16_but_for_matrices_and_biases(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "half", dtype="bfloat16")
    quantise_checkpoint(tmp_path / "half", tmp_path / "q", W8)
    stored = load_file(tmp_path / "q" / SINGLE)
    assert stored[NORM].dtype == torch.bfloat16
    assert stored["model.layers.1.mlp.gate.balancing_biases"].dtype == torch.float32
    assert {t.dtype for name, t in stored.items() if name.endswith(".codes")} == {torch.int8}
    assert load_model(tmp_path / "q").config.dtype == "bfloat16"


# ---- the file ----


def header_of(path: Path) -> tuple[int, dict[str, Any]]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return 8 + length, json.loads(content[8 : 8 + length])


def test_the_header_says_what_the_file_is(quantised, model):
    _, header = header_of(quantised / SINGLE)
    fields = json.loads(header.pop("__metadata__")[KEY])
    assert (fields["format"], fields["version"]) == ("openzaya-quantised", 1)
    assert (fields["scheme"], fields["group"]) == ("w4", 32)
    assert fields["architecture"]["hidden_size"] == 128
    assert fields["hashes"].keys() == header.keys()
    mark = json.loads((quantised / "config.json").read_text())["quantization_config"]
    assert mark == {"quant_method": "openzaya", "version": 1, "scheme": "w4", "group": 32}
    assert (quantised / "tokenizer.json").exists()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_and_scales_start_on_cache_lines_and_the_rest_on_its_own_size(checkpoint, tmp_path, scheme):
    quantise_checkpoint(checkpoint, tmp_path / "q", scheme)
    start, header = header_of(tmp_path / "q" / SINGLE)
    header.pop("__metadata__")
    unaligned = [
        name
        for name, entry in header.items()
        if (start + entry["data_offsets"][0]) % (64 if name.endswith((".codes", ".scales")) else 4)
    ]
    assert unaligned == []
    assert Container(tmp_path / "q").matrix(QKV).codes.data_ptr() % 64 == 0


def test_queries_keys_and_values_are_one_matrix_and_an_expert_is_a_view(quantised, model):
    container = Container(quantised)
    attention = model.model.layers[1].self_attn.qkv_proj
    projections = (attention.q_proj, attention.k_proj, attention.v_proj_current, attention.v_proj_delayed)
    together = torch.cat([projection.weight.detach() for projection in projections])
    assert torch.equal(container.matrix(QKV).codes, quantise(together, W4_GROUP_32).codes)
    expert = container.matrix(EXPERTS, 2)
    alone = quantise(model.model.layers[1].mlp.experts.gate_up_proj[2].detach(), W4_GROUP_32, interleaved=True)
    assert torch.equal(expert.codes, alone.codes)
    assert torch.equal(expert.scales, alone.scales)
    assert expert.codes.untyped_storage().data_ptr() == container.matrix(EXPERTS, 0).codes.untyped_storage().data_ptr()


# ---- interruptions ----


def test_progress_goes_up_to_the_size_and_says_what_is_left(checkpoint, tmp_path):
    seen: list[Progress] = []
    quantise_checkpoint(checkpoint, tmp_path / "q", W8, seen.append)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total
    assert seen[-1].seconds_left == 0
    assert Progress(25, 100, 4.0).seconds_left == 12.0


def test_an_interrupted_run_leaves_the_destination_as_it_was(checkpoint, quantised, tmp_path):
    before = (quantised / SINGLE).read_bytes()

    def interrupt(step: Progress) -> None:
        if step.done > step.total / 2:
            raise KeyboardInterrupt

    for destination in (quantised, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            quantise_checkpoint(checkpoint, destination, W8, interrupt)
    assert (quantised / SINGLE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q"]


_KILLED = """
import os, signal, sys
from openzaya.model.quantised.quantise import quantise_checkpoint
quantise_checkpoint(sys.argv[1], sys.argv[2], progress=lambda step: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_run_left_is_removed_by_the_next_and_a_running_ones_is_not(checkpoint, tmp_path):
    subprocess.run([sys.executable, "-c", _KILLED, str(checkpoint), str(tmp_path / "q")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")

    def during(step: Progress) -> None:
        if not (tmp_path / "q").exists():
            # A second run beside the first one finishes, and leaves the first one's work alone.
            quantise_checkpoint(checkpoint, tmp_path / "q", W8)

    quantise_checkpoint(checkpoint, tmp_path / "q", W4_GROUP_32, during)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    assert Container(tmp_path / "q").scheme == W4_GROUP_32


_MEMORY = """
import sys
from openzaya.model.quantised.quantise import quantise_checkpoint

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def mapped():  # bytes of the checkpoint that are resident in this process
    of_checkpoint, total = False, 0
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            of_checkpoint = sys.argv[1] in line
        elif of_checkpoint and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total

first, seen, read = anonymous(), [], []
quantise_checkpoint(sys.argv[1], sys.argv[2], progress=lambda step: (seen.append(anonymous()), read.append(mapped())))
print(max(seen) - first, max(read))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see memory")
def test_quantising_needs_room_for_a_few_tensors_not_for_the_model(draw_config, draw_model, tmp_path):
    shape = {"hidden_size": 256, "head_dim": 32, "moe_intermediate_size": 1024, "num_experts": 12, "vocab_size": 128}
    save_model(draw_model(draw_config(302, **{**SHAPE, **shape})), tmp_path / "m")
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path / "m"), str(tmp_path / "q")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (tmp_path / "m" / SINGLE).stat().st_size > 75e6
    anonymous, mapped = map(int, done.stdout.split())
    assert anonymous < 30e6
    assert 20e6 < mapped < 40e6, "one stack of experts is 25 MB"


# ---- what is refused before anything is written ----


def test_what_cannot_be_quantised_is_refused(checkpoint, quantised, tmp_path, draw_config, draw_model):
    with pytest.raises(ValueError, match=r"/q is quantised already \(w4 in groups of 32\); give the checkpoint"):
        quantise_checkpoint(quantised, tmp_path / "out", W8)
    with pytest.raises(ValueError, match=r"/m is the checkpoint itself; give another folder"):
        quantise_checkpoint(checkpoint, checkpoint, W8)
    save_model(draw_model(draw_config(303, **{**SHAPE, "moe_intermediate_size": 96})), tmp_path / "odd")
    with pytest.raises(ValueError, match=r"experts\.down_proj has 96 columns, which groups of 128 do not divide; use"):
        quantise_checkpoint(tmp_path / "odd", tmp_path / "out", W4_GROUP_128)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_no_number_is_named_and_nothing_is_left(model, tmp_path):
    broken = ZayaForCausalLM(model.config)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.model.layers[1].mlp.experts.gate_up_proj[1, 3, 5] = float("nan")
    save_model(broken, tmp_path / "m")
    with pytest.raises(ValueError, match=rf"/m, {EXPERTS}: a weight is not a finite number"):
        quantise_checkpoint(tmp_path / "m", tmp_path / "q")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_disk_that_is_too_full_is_noticed_at_once(checkpoint, tmp_path, monkeypatch):
    usage = type(quantising.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(quantising.shutil, "disk_usage", lambda _path: usage(10**12, 10**12, 1000))
    with pytest.raises(ValueError, match=r"/q needs 0\.0 GB of disk and 0\.0 GB are free there; make room, or give"):
        quantise_checkpoint(checkpoint, tmp_path / "q")


# ---- everything that can be wrong with a container ----


def edit_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with storage.safe_open(folder / SINGLE, "pt") as file:
            metadata = file.metadata()
        fields = json.loads(metadata[KEY])
        change(fields)
        save_file(load_file(folder / SINGLE), folder / SINGLE, {**metadata, KEY: json.dumps(fields)})

    return damage


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with storage.safe_open(folder / SINGLE, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(folder / SINGLE)
        change(tensors)
        save_file(tensors, folder / SINGLE, metadata)

    return damage


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | changes))

    return damage


def flip(name: str) -> Callable[[Path], None]:
    """Change one bit of one tensor."""

    def damage(folder: Path) -> None:
        start, header = header_of(folder / SINGLE)
        with (folder / SINGLE).open("r+b") as file:
            file.seek(start + header[name]["data_offsets"][0] + 5)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))

    return damage


def cut(folder: Path) -> None:
    os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 1)


DAMAGES = [
    (cut, r"q/model\.safetensors is broken or cut short"),
    (lambda folder: (folder / SINGLE).write_bytes(b""), r"q/model\.safetensors is broken or cut short"),
    (edit_header(lambda fields: fields.update(version=2)), r"it has version 2 and this openzaya reads 1; install a n"),
    (edit_header(lambda fields: fields.update(version="1")), r"its header has the version '1'; the file is damaged"),
    (edit_header(lambda fields: fields.update(format="gguf")), r"its header does not say openzaya-quantised"),
    (edit_header(lambda fields: fields.update(scheme="w5")), r"the scheme 'w5' with the group 32; quantise"),
    (edit_header(lambda fields: fields.pop("group")), r"the scheme 'w4' with the group None; quantise"),
    (edit_header(lambda fields: fields.update(group=128)), r"scales is stored as F16 .*, not as F16 .*; the file i"),
    (edit_header(lambda fields: fields.pop("hashes")), r"its header lacks the architecture or the hashes"),
    (edit_header(lambda fields: fields["hashes"].popitem()), r"does not have a hash of every tensor"),
    (edit_header(lambda fields: fields["hashes"].update({NORM: "ab"})), rf"{NORM} is damaged \(its hash differs\)"),
    (edit_config(hidden_size=256), r"config\.json says hidden_size 256, but the weights were quantised with 128; p"),
    (edit_config(num_experts=4), r"config\.json says num_experts 4, but the weights were quantised with 3"),
    (edit_config(model_type="llama"), r"config\.json describes a 'llama' model"),
    (edit_config(layer_types=3), r"config\.json cannot be read \(TypeError"),
    (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    (edit_tensors(lambda t: t.pop(NORM)), rf"{NORM} is missing; the file is damaged"),
    (edit_tensors(lambda t: t.update(extra=torch.ones(1))), r"extra is no tensor of this model"),
    (edit_tensors(lambda t: t.update({NORM: t[NORM].to(torch.int8)})), rf"{NORM} is stored as I8 \[128\], not as F32"),
    (flip(NORM), rf"q/model\.safetensors: {NORM} is damaged \(its hash differs\); copy the file again"),
]  # fmt: skip
IDS = [
    "cut", "empty", "newer", "version-type", "format", "scheme", "no-group", "other-group", "no-hashes", "a-hash-less",
    "other-hash", "architecture", "experts", "other-model", "config-type", "no-config", "missing", "unknown", "type",
    "small-tensor",
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=IDS)
def test_a_damaged_container_is_refused_on_opening_in_one_sentence(quantised, damage, message):
    damage(quantised)
    with pytest.raises(ValueError, match=message) as caught:
        Container(quantised)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError):
        load_model(quantised)


def test_damage_inside_a_large_tensor_is_found_by_the_full_check_and_by_loading(quantised, monkeypatch):
    monkeypatch.setattr("openzaya.model.quantised.container._HASHED_ON_OPENING", 10_000)
    flip(f"{EXPERTS}.codes")(quantised)
    container = Container(quantised)
    with pytest.raises(ValueError, match=rf"model\.safetensors: {EXPERTS}\.codes is damaged \(its hash differs\)"):
        container.verify()
    with pytest.raises(ValueError, match=rf"{EXPERTS}\.codes is damaged"):
        load_model(quantised)


def test_a_sound_container_passes_the_full_check(quantised):
    seen: list[tuple[int, int]] = []
    Container(quantised).verify(lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 100_000


def test_a_container_without_its_header_is_not_taken_for_a_checkpoint(quantised):
    save_file(load_file(quantised / SINGLE), quantised / SINGLE, {"format": "pt"})
    with pytest.raises(ValueError, match=r"says in config\.json that it is quantised, but its weights have no header"):
        load_model(quantised)


@pytest.fixture(scope="module")
def sound(draw_config, draw_model, tmp_path_factory) -> tuple[Path, bytes, dict[str, torch.Tensor]]:
    """The folder, the bytes and the weights of a small container."""
    folder = tmp_path_factory.mktemp("fuzz")
    small = {"hidden_size": 32, "head_dim": 4, "num_hidden_layers": 1, "layer_types": (), "moe_intermediate_size": 16}
    save_model(draw_model(draw_config(304, **{**SHAPE, **small})), folder / "m")
    quantise_checkpoint(folder / "m", folder / "q", W8)
    return folder / "q", (folder / "q" / SINGLE).read_bytes(), load_model(folder / "q").state_dict()


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_file_damaged_anywhere_loads_unchanged_or_is_refused_in_one_sentence(sound, data):
    folder, bytes_before, whole = sound
    content = bytearray(bytes_before)
    start = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        # Half of the damage goes to the header.
        place = data.draw(st.one_of(st.integers(0, start), st.integers(0, len(bytes_before) - 1)))
        match data.draw(st.sampled_from(["change", "cut", "insert", "remove"])):
            case "change":
                content[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[place:]
            case "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
            case "remove":
                del content[place : place + data.draw(st.integers(1, 9))]
    # A new file: the one that stood here may still be mapped, and must not change under those who map it.
    (folder / SINGLE).unlink()
    (folder / SINGLE).write_bytes(content)
    refusal, loaded = "", {}
    try:
        loaded = load_model(folder).state_dict()
    except ValueError as error:
        refusal = str(error)
    assert "\n" not in refusal
    if refusal:
        return
    assert [name for name in whole if not torch.equal(loaded[name], whole[name])] == []


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_config_damaged_anywhere_is_read_or_refused_in_one_sentence(sound, data):
    folder, bytes_before, _ = sound
    before = (folder / "config.json").read_bytes()
    content = bytearray(before)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(before) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b"9", b"e9", b"-", b"[", b"]", b'"', b"null", b"1e999"]))
        )
    refusal = ""
    try:
        (folder / "config.json").write_bytes(content)
        (folder / SINGLE).unlink()
        (folder / SINGLE).write_bytes(bytes_before)
        load_model(folder)
    except ValueError as error:
        refusal = str(error)
    finally:
        (folder / "config.json").write_bytes(before)
    assert "\n" not in refusal
