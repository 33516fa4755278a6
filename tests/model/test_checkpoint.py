"""Checkpoints on disk: both layouts, shards, dtypes, everything that can be wrong with a folder, interrupted saves."""

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
from safetensors.torch import load_file, save_file

from openzaya.model import checkpoint, storage
from openzaya.model.checkpoint import checkpoint_layout, convert, find_model, iter_tensors, load_model, save_model
from openzaya.model.config import RopeParameters, ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.names import LAYOUTS, expected_tensors

ROPE = {"hybrid": RopeParameters(rope_theta=3e4), "hybrid_sliding": RopeParameters(rope_theta=1e4)}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def model(draw_config, draw_model) -> ZayaForCausalLM:
    shape = {"layer_types": ("hybrid",) * 3, "num_hidden_layers": 3, "sliding_window": None, "num_experts": 4}
    return draw_model(draw_config(200, tie_word_embeddings=True, rope_parameters=ROPE, **shape), seed=200)


def same_weights(left: ZayaForCausalLM, right: ZayaForCausalLM) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def same_files(left: Path, right: Path) -> bool:
    names = sorted(path.name for path in left.iterdir())
    return names == sorted(path.name for path in right.iterdir()) and all(
        (left / name).read_bytes() == (right / name).read_bytes() for name in names
    )


def edit_config(folder: Path, **changes: Any) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


# ---- there and back ----


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 20_000, 1], ids=["one-file", "shards", "a-shard-a-tensor"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_saved_model_loads_to_the_bit(model, tmp_path, layout, max_shard_bytes):
    save_model(model, tmp_path / "m", layout, max_shard_bytes=max_shard_bytes)
    assert checkpoint_layout(tmp_path / "m") == layout
    loaded = load_model(tmp_path / "m")
    assert same_weights(loaded, model)
    assert not loaded.training
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("seed", range(6))
def test_native_to_legacy_to_native_gives_the_same_bytes(seed, draw_config, draw_model, tmp_path):
    # One expert is the case where a stacked tensor and its only slice are easy to confuse.
    config = draw_config(210 + seed, num_experts=1 if seed == 0 else 3, layer_types=("hybrid",), num_hidden_layers=1)
    if seed % 2:
        config = config.with_(num_hidden_layers=3)
    save_model(draw_model(config, seed), tmp_path / "native", dtype="bfloat16" if seed > 2 else None)
    convert(tmp_path / "native", tmp_path / "legacy", "legacy", max_shard_bytes=10_000)
    convert(tmp_path / "legacy", tmp_path / "back", "native")
    assert set(dict(iter_tensors(tmp_path / "legacy"))) == set(expected_tensors(config, "legacy"))
    assert (tmp_path / "native" / SINGLE).read_bytes() == (tmp_path / "back" / SINGLE).read_bytes()
    convert(tmp_path / "legacy", tmp_path / "again", "legacy", max_shard_bytes=10_000)
    assert same_files(tmp_path / "legacy", tmp_path / "again")


def test_the_legacy_layout_applies_a_residual_scaling_half_a_layer_later(model, tmp_path):
    save_model(model, tmp_path / "m", "legacy")
    stored, weights = dict(iter_tensors(tmp_path / "m")), model.state_dict()
    for layer in range(3):
        after = f"layers.{2 * layer + 2}." if layer < 2 else ""
        for vector in ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias"):
            native = f"model.layers.{layer}.post_mlp_residual_scale.{vector}"
            assert torch.equal(stored[f"model.{after}res_scale.{vector}"], weights[native])
    assert "model.layers.0.res_scale.residual_scale" not in stored


def test_balancing_biases_stay_float32_whatever_the_dtype(model, tmp_path):
    save_model(model, tmp_path / "m", dtype="bfloat16")
    stored = dict(iter_tensors(tmp_path / "m"))
    assert {str(t.dtype) for name, t in stored.items() if name.endswith("balancing_biases")} == {"torch.float32"}
    assert {str(t.dtype) for name, t in stored.items() if not name.endswith("balancing_biases")} == {"torch.bfloat16"}
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        loaded = load_model(tmp_path / "m", dtype=dtype)
        gate = loaded.model.layers[0].mlp.gate
        assert torch.equal(gate.balancing_biases, model.model.layers[0].mlp.gate.balancing_biases)
        assert gate.down_proj.weight.dtype == expected
        assert loaded.config.dtype == str(expected).removeprefix("torch.")


def test_bfloat16_biases_of_an_old_file_load_as_float32(model, tmp_path):
    save_model(model, tmp_path / "m")
    edit_weights(tmp_path / "m", lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    assert load_model(tmp_path / "m").model.layers[0].mlp.gate.balancing_biases.dtype == torch.float32


def test_numerics_skip_semantics_and_dtype_are_the_callers_choice(model, tmp_path):
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", dtype="bfloat16", numerics="report", skip_semantics="identity")
    assert loaded.numerics.name == "report"
    assert loaded.config.skip_semantics == "identity"
    assert loaded.model.layers[0].mlp.experts.skip_is_identity
    assert load_model(tmp_path / "m").config.skip_semantics == "zero"


def test_a_file_without_a_dtype_runs_in_the_dtype_of_its_weights(model, tmp_path):
    save_model(model, tmp_path / "m")
    fields = json.loads((tmp_path / "m" / "config.json").read_text())
    del fields["dtype"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(fields))
    assert load_model(tmp_path / "m").config.dtype == "float32"


def test_the_file_is_one_that_the_safetensors_library_reads(model, tmp_path):
    save_model(model, tmp_path / "m", max_shard_bytes=20_000, dtype="bfloat16")
    index = json.loads((tmp_path / "m" / INDEX).read_text())
    shards = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    read: dict[str, torch.Tensor] = {}
    for shard in shards:
        tensors = load_file(tmp_path / "m" / shard)
        assert {index["weight_map"][name] for name in tensors} == {shard}
        assert sum(t.nbytes for t in tensors.values()) <= 20_000 or len(tensors) == 1
        with storage.safe_open(tmp_path / "m" / shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        read |= tensors
    assert read.keys() == expected_tensors(model.config).keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read.values())


def test_every_tensor_starts_at_a_multiple_of_its_item_size(draw_config, draw_model, tmp_path):
    # One key-value head has a single temperature: two bytes in bfloat16, before float32 biases.
    model = draw_model(draw_config(202, num_key_value_heads=1, num_attention_heads=1, num_experts=4))
    save_model(model, tmp_path / "m", dtype="bfloat16")
    content = (tmp_path / "m" / SINGLE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    sizes = {"F32": 4, "BF16": 2}
    assert {entry["dtype"] for entry in header.values()} == sizes.keys()
    starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}
    assert [name for name, start in starts.items() if start % sizes[header[name]["dtype"]]] == []


def test_conversion_reports_progress_and_brings_the_tokenizer(model, tmp_path):
    save_model(model, tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (tmp_path / "m" / name).write_text(name)
    (tmp_path / "m" / "optimizer.bin").write_text("not copied")
    seen: list[tuple[int, int]] = []
    convert(tmp_path / "m", tmp_path / "c", "legacy", dtype="bfloat16", progress=lambda *step: seen.append(step))
    assert (tmp_path / "c" / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", SINGLE, "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    done, total = zip(*seen)
    assert list(done) == sorted(done)
    assert set(total) == {done[-1]}
    assert load_model(tmp_path / "c").config == model.config.with_(dtype="bfloat16")


def test_a_folder_converts_onto_itself(model, tmp_path):
    save_model(model, tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "m", "legacy")
    assert checkpoint_layout(tmp_path / "m") == "legacy"
    assert same_weights(load_model(tmp_path / "m"), model)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see memory")
def test_loading_allocates_the_weights_once(draw_config, draw_model, tmp_path):
    config = draw_config(1, num_hidden_layers=2, hidden_size=256, moe_intermediate_size=1024, num_experts=12)
    save_model(draw_model(config), tmp_path / "m")
    size = (tmp_path / "m" / SINGLE).stat().st_size
    # A process of its own: this one may have freed memory at hand, which loading would use again.
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY_OF_LOADING, str(tmp_path / "m")], capture_output=True, text=True, check=True
    )
    assert size > 75e6
    assert 0.9 * size < int(done.stdout) < 1.2 * size


_MEMORY_OF_LOADING = """
import sys, threading, time
from openzaya.model.checkpoint import load_model

def anonymous():  # bytes of this process that no file backs
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

before = peak = anonymous()
stop = threading.Event()

def watch():
    global peak
    while not stop.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
model = load_model(sys.argv[1])
stop.set()
watcher.join()
print(max(peak, anonymous()) - before)
"""


# ---- what may differ: heads in the config, a head beside tied embeddings ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_head_counts_are_those_of_the_weights_where_the_config_differs(draw_config, draw_model, tmp_path, layout):
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ("hybrid",), "num_hidden_layers": 1}
    model = draw_model(draw_config(220, **shape))
    save_model(model, tmp_path / "m", layout)
    edit_config(tmp_path / "m", num_attention_heads=8)
    assert same_weights(loaded := load_model(tmp_path / "m"), model)
    assert loaded.config.num_attention_heads == 4


def test_a_head_equal_to_the_tied_embedding_is_ignored_and_another_one_refused(model, tmp_path):
    save_model(model, tmp_path / "m")
    head = model.model.embed_tokens.weight.detach().clone()
    edit_weights(tmp_path / "m", lambda tensors: tensors.update({"lm_head.weight": head}))
    assert same_weights(load_model(tmp_path / "m"), model)
    convert(tmp_path / "m", tmp_path / "c")
    assert "lm_head.weight" not in dict(iter_tensors(tmp_path / "c"))
    edit_weights(tmp_path / "m", lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"model\.safetensors: lm_head\.weight differs from model\.embed_tokens"):
        load_model(tmp_path / "m")


def test_an_untied_head_is_kept(draw_config, draw_model, tmp_path):
    model = draw_model(draw_config(221, tie_word_embeddings=False))
    for layout in LAYOUTS:
        save_model(model, tmp_path / layout, layout)
        assert same_weights(load_model(tmp_path / layout), model)


# ---- everything that can be wrong with a folder ----

NORM, EXPERTS = "model.layers.1.input_layernorm.weight", "model.layers.2.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop(NORM), rf"/m lacks {NORM}, which its config\.json asks for"),
        (lambda t: [t.pop(NORM), t.pop(EXPERTS)], rf"/m lacks {NORM} and 1 more tensors"),
        (lambda t: t.update(extra=torch.zeros(1)), r"model\.safetensors holds extra, which no ZAYA"),
        (lambda t: t.update({NORM: torch.ones(3)}), rf"model\.safetensors: {NORM} has the shape \[3\], but config"),
        (lambda t: t.update({NORM: torch.ones(24, dtype=torch.int8)}), rf"{NORM} is stored as I8"),
        (lambda t: t.clear(), "holds no ZAYA weights, but nothing"),
    ],
    ids=["missing", "two-missing", "unknown", "wrong-shape", "integers", "empty"],
)
def test_a_tensor_that_does_not_belong_is_named(model, tmp_path, damage, message):
    save_model(model, tmp_path / "m")
    edit_weights(tmp_path / "m", damage)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "m", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_in_a_legacy_file_the_legacy_name_is_the_one_named(model, tmp_path):
    save_model(model, tmp_path / "m", "legacy")
    name = "model.layers.3.zaya_block.experts.local_experts.2.linear_fc1.weight"
    edit_weights(tmp_path / "m", lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"lacks {name}, which"):
        load_model(tmp_path / "m")


def test_a_wrong_query_projection_is_not_taken_for_another_head_count(model, tmp_path):
    save_model(model, tmp_path / "m")
    name = "model.layers.0.self_attn.qkv_proj.q_proj.weight"
    edit_weights(tmp_path / "m", lambda tensors: tensors.update({name: torch.cat([tensors[name]] * 2)}))
    with pytest.raises(ValueError, match=f"{name} has the shape"):
        load_model(tmp_path / "m")


def _cut(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    os.truncate(path, path.stat().st_size - 10)


def _overwrite(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].write_bytes(b"<html>404</html>" * 10)


def _drop_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def _index(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def _duplicate(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    tensors = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    save_file(tensors | {name: tensor}, second, {"format": "pt"})


def _pickles(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")


def _header_length(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"model-00001-of-\d+\.safetensors is broken or cut short"),
        (_overwrite, r"model-00002-of-\d+\.safetensors is broken or cut short"),
        (_header_length, r"model-00001-of-\d+\.safetensors is broken or cut short"),
        (_drop_shard, r"model-00001-of-\d+\.safetensors is missing, and the index names it"),
        (_index(lambda names: names.update(absent=names[NORM])), r"index\.json places absent in model-.* not hold it"),
        (_index(lambda names: names.pop(NORM)), rf"safetensors holds {NORM}, which .*index\.json does not list"),
        (_index(lambda names: names.clear()), r"index\.json has a weight_map without tensors"),
        (_index(lambda names: names.update({NORM: "../../etc/passwd"})), r"in '\.\./\.\./etc/passwd'; a shard is"),
        (lambda folder: (folder / INDEX).write_text("[]"), r"index\.json is not an index with a weight_map"),
        (lambda folder: (folder / INDEX).write_text("{"), r"index\.json is not an index with a weight_map"),
        (lambda folder: (folder / INDEX).unlink(), r"holds model-00001-of-\d+\.safetensors but no model"),
        (lambda folder: save_file({}, folder / SINGLE), r"/m holds both model\.safetensors and"),
        (_duplicate, r"model-00002.* and model-00001-of-\d+\.safetensors both hold "),
        (_pickles, r"pytorch_model\.bin is a pickle, which can run code when it is read"),
        (lambda folder: edit_config(folder, quantization_config={"bits": 4}), r"/m is quantised"),
        (lambda folder: edit_config(folder, layer_types=3), r"config\.json cannot be read \(TypeError"),
        (lambda folder: edit_config(folder, dtype="float16"), r"/m cannot run in dtype 'float16'; give dtype"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    ],
    ids=[
        "cut", "overwritten", "header", "no-shard", "absent-tensor", "unlisted-tensor", "empty-index", "path-in-index",
        "index-list", "index-syntax", "no-index", "both", "duplicate", "pickle", "quantised", "config-type", "float16",
        "no-config",
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_in_one_sentence_that_names_the_file(model, tmp_path, damage, message):
    save_model(model, tmp_path / "m", max_shard_bytes=20_000)
    damage(tmp_path / "m")
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, "cannot run in dtype 'float16'"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"numerics": "exact"}, "numerics is 'exact'"),
        ({"skip_semantics": "copy"}, "skip_semantics is 'copy'"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(model, tmp_path, arguments, message):
    save_model(model, tmp_path / "m")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m", **arguments)


def test_a_model_that_is_nowhere_is_refused_with_the_ways_to_name_one(tmp_path):
    with pytest.raises(ValueError, match=r"is no model folder; give a folder, a hub id such as .*, or 'tiny'"):
        load_model(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no weights"):
        load_model(tmp_path)


def test_a_hub_id_downloads_safe_files_only_and_says_so_when_it_cannot(model, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    save_model(model, tmp_path / "m")
    asked: dict[str, Any] = {}

    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked.update(hub_id=hub_id, allow_patterns=allow_patterns)
        return str(tmp_path / "m")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same_weights(load_model("Zyphra/ZAYA1-8B"), model)
    assert asked["hub_id"] == "Zyphra/ZAYA1-8B"
    assert not any(pattern.endswith((".bin", ".py", ".pt")) or pattern == "*" for pattern in asked["allow_patterns"])

    def offline(hub_id: str, **_options: Any) -> str:
        raise LocalEntryNotFoundError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"cannot be reached \(no route\), and Zyphra/ZAYA1-8B is not kept"):
        find_model("Zyphra/ZAYA1-8B")


def test_a_local_folder_wins_over_a_hub_id_of_the_same_spelling(model, tmp_path, monkeypatch):
    save_model(model, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert find_model("org/name") == Path("org/name")
    assert same_weights(load_model("org/name"), model)


# ---- saving over something ----


def test_saving_again_replaces_the_weights_and_leaves_the_tokenizer(model, tmp_path, draw_model):
    save_model(model, tmp_path / "m", max_shard_bytes=20_000)
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    (tmp_path / "m" / "runs").mkdir()
    (tmp_path / "m" / "runs" / "log").write_text("kept")
    other = draw_model(model.config, seed=1)
    save_model(other, tmp_path / "m")
    assert same_weights(load_model(tmp_path / "m"), other)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", SINGLE, "runs", "tokenizer.json"]
    assert (tmp_path / "m" / "runs" / "log").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_loaded_model_does_not_change_when_its_folder_does(model, tmp_path, draw_model):
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    save_model(draw_model(model.config, seed=1), tmp_path / "m")
    assert same_weights(loaded, model)


def test_a_folder_of_something_else_is_not_taken_over(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="has files in it but no model"):
        save_model(model, tmp_path)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        save_model(model, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class Crash(BaseException):
    """Not an Exception, as an interrupt is not."""


def _crash_at(calls: int, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """Make the call number `calls` of `owner.name` fail; returns the count of calls made."""
    real, made = getattr(owner, name), [0]

    def sometimes(*arguments: Any, **options: Any) -> Any:
        made[0] += 1
        if made[0] == calls:
            raise Crash
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, sometimes)
    return made


@pytest.mark.parametrize("step", ["fsync", "rename"])
@pytest.mark.parametrize("exists", [True, False], ids=["over-an-old-model", "new"])
def test_an_interrupted_save_leaves_what_was_there(model, tmp_path, draw_model, monkeypatch, step, exists):
    other = draw_model(model.config, seed=1)
    if exists:
        save_model(model, tmp_path / "m")
        (tmp_path / "m" / "tokenizer.json").write_text("{}")
    owner = os if step == "fsync" else Path
    crashes = 0
    for call in range(1, 50):
        with monkeypatch.context() as patch:
            made = _crash_at(call, patch, owner, step)
            try:
                save_model(other, tmp_path / "m", max_shard_bytes=30_000)
            except Crash:
                crashes += 1
            if made[0] < call:
                break  # the save went through before its call number `call`
        if step == "fsync" and (tmp_path / "m" / INDEX).exists():
            continue  # the crash came after the new folder was in place
        assert [path.name for path in tmp_path.iterdir()] == (["m"] if exists else [])
        if exists:
            assert same_weights(load_model(tmp_path / "m"), model)
            assert (tmp_path / "m" / "tokenizer.json").exists()
    assert crashes >= (1 if step == "rename" else 4)
    assert same_weights(load_model(tmp_path / "m"), other)


def test_a_shard_size_of_nothing_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        save_model(model, tmp_path / "m", max_shard_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_wrong_layouts_and_dtypes_are_refused_before_anything_is_written(model, tmp_path):
    with pytest.raises(ValueError, match="layout is 'gguf'"):
        save_model(model, tmp_path / "m", "gguf")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        save_model(model, tmp_path / "m", dtype="int8")
    with pytest.raises(ValueError, match="the model is on the meta device"):
        save_model(model.to("meta"), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_name_is_found_in_the_package(monkeypatch, tmp_path, model):
    save_model(model, tmp_path / "bundled" / "zaya1-tiny")
    monkeypatch.setattr(checkpoint.importlib.resources, "files", lambda _package: tmp_path)
    assert same_weights(load_model("tiny"), model)
    monkeypatch.setattr(checkpoint.importlib.resources, "files", lambda _package: tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="the bundled model is missing from this installation"):
        load_model("tiny")


def test_configs_written_in_either_layout_describe_the_same_model(model, tmp_path):
    for layout in LAYOUTS:
        save_model(model, tmp_path / layout, layout)
    native, legacy = (ZayaConfig.from_folder(tmp_path / layout) for layout in LAYOUTS)
    assert native == legacy == model.config
