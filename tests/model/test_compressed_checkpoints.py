"""Folders of the compressed-tensors format, experts in FP8 or MXFP4, written here from a small model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openzaya.model.checkpoint import convert, load_model, save_model
from openzaya.model.compressed import restore_mxfp4
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.quantised.packing import dequantise, quantise
from openzaya.model.quantised.quantise import quantise_checkpoint
from openzaya.model.quantised.scheme import W8

SINGLE = "model.safetensors"
STACKS = ("gate_up_proj", "down_proj")
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
DOWN = "model.layers.1.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def model(draw_config, draw_model) -> ZayaForCausalLM:
    shape = {"hidden_size": 32, "moe_intermediate_size": 64, "num_experts": 3, "num_attention_heads": 8, "head_dim": 8}
    config = draw_config(400, num_hidden_layers=2, num_key_value_heads=2, tie_word_embeddings=True, **shape)
    return draw_model(config, seed=400)


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, scales, and what they stand for."""
    scales = (weight.abs().amax(-1, keepdim=True) / 448).bfloat16()
    values = (weight / scales.float()).to(torch.float8_e4m3fn)
    return values, scales, values.float() * scales.float()


def to_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = weight.unflatten(-1, (-1, 32))
    exponents = groups.abs().amax(-1).clamp_min(1e-30).log2().floor() - 2
    scaled = groups / 2.0 ** exponents[..., None]
    codes = (scaled.abs()[..., None] - E2M1).abs().argmin(-1)
    values = E2M1[codes] * scaled.sign() * 2.0 ** exponents[..., None]
    nibbles = (codes + 8 * (scaled < 0)).flatten(-2).to(torch.uint8)
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4, (exponents + 127).to(torch.uint8), values.flatten(-2)


def write_compressed(model: ZayaForCausalLM, folder: Path, format_: str) -> dict[str, Tensor]:
    """Save `model` as Zyphra's releases are; returns what its weights have become."""
    save_model(model, folder)
    tensors, expected = load_file(folder / SINGLE), {}
    for name in [name for name in tensors if name.endswith(STACKS)]:
        if format_ == "float-quantized":
            values, scales, expected[name] = to_fp8(tensors.pop(name))
            tensors[name] = values
        else:
            values, scales, expected[name] = to_mxfp4(tensors.pop(name))
            tensors[f"{name}.weight_packed"] = values
        tensors[f"{name}.weight_scale"] = scales
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    fields = json.loads((folder / "config.json").read_text())
    group = {"format": format_, "targets": [r"re:.*experts.*"], "weights": {"num_bits": 4 if "mx" in format_ else 8}}
    quantization = {"quant_method": "compressed-tensors", "format": format_, "config_groups": {"group_0": group}}
    (folder / "config.json").write_text(json.dumps(fields | {"quantization_config": quantization}))
    return {**model.state_dict(), **expected}


FORMATS = pytest.mark.parametrize("format_", ["float-quantized", "mxfp4-pack-quantized"])


@FORMATS
def test_experts_are_dequantised_and_everything_else_is_as_it_was(model, tmp_path, format_, relative_error):
    expected = write_compressed(model, tmp_path / "m", format_)
    loaded = load_model(tmp_path / "m")
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert 0 < relative_error(found[DOWN], model.state_dict()[DOWN]) < (0.05 if format_ == "float-quantized" else 0.2)
    assert loaded.config == model.config


@FORMATS
def test_a_compressed_folder_converts_and_quantises_like_any_other(model, tmp_path, format_):
    expected = write_compressed(model, tmp_path / "m", format_)
    convert(tmp_path / "m", tmp_path / "legacy", "legacy")
    found = load_model(tmp_path / "legacy").state_dict()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    quantise_checkpoint(tmp_path / "m", tmp_path / "q", W8)
    rounded = torch.stack([dequantise(quantise(each, W8)) for each in expected[DOWN]])
    assert torch.equal(load_model(tmp_path / "q").state_dict()[DOWN], rounded)


def test_every_value_of_mxfp4_comes_out_at_its_place():
    packed = torch.arange(16, dtype=torch.uint8)[None]
    packed = packed | (15 - packed) << 4
    values = restore_mxfp4(packed, torch.tensor([[130]], dtype=torch.uint8))[0].tolist()
    signed = [*E2M1.tolist(), *(-E2M1).tolist()]
    assert values[::2] == [8 * value for value in signed]
    assert values[1::2] == [8 * value for value in reversed(signed)]


def _rewrite(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        change(tensors)
        save_file(tensors, folder / SINGLE, {"format": "pt"})

    return damage


def _format(name: str | None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        fields["quantization_config"] = {"quant_method": "compressed-tensors", "format": name}
        (folder / "config.json").write_text(json.dumps(fields))

    return damage


SCALE, PACKED = f"{DOWN}.weight_scale", f"{DOWN}.weight_packed"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_format("nvfp4-pack-quantized"), r"/m is compressed as nvfp4-pack-quantized; openzaya reads float-q"),
        (_format(None), r"/m is compressed as nothing known; openzaya reads"),
        (_rewrite(lambda t: t.pop(PACKED)), rf"holds {SCALE}, but no tensor that it belongs to"),
        (_rewrite(lambda t: t.update({DOWN: t[PACKED] + 0})), rf"holds {SCALE}, but several tensors that it be"),
        (_rewrite(lambda t: t.update({SCALE: t[SCALE].float()})), rf"{SCALE} is stored as F32, not as U8"),
        (_rewrite(lambda t: t.update({SCALE: t[SCALE][:, :1] + 0})), rf"{SCALE} has the shape \[3, 1, 2\], but"),
        (_rewrite(lambda t: t.pop(SCALE)), rf"lacks {DOWN}, which its config\.json asks for"),
        (_rewrite(lambda t: [t.pop(name) for name in list(t) if "weight_scale" in name]), "but has no scales; downlo"),
    ],
    ids=["nvfp4", "no-format", "no-codes", "two-codes", "scale-type", "scale-shape", "no-scale", "no-scales"],
)  # fmt: skip
def test_a_compressed_folder_that_does_not_fit_together_is_refused_in_one_sentence(model, tmp_path, damage, message):
    write_compressed(model, tmp_path / "m", "mxfp4-pack-quantized")
    damage(tmp_path / "m")
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)
