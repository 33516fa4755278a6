"""Folders of the compressed-tensors format as Zyphra releases them: experts in FP8 or MXFP4, everything else plain.

E experts, N rows, K columns. NAME is `mlp.experts.gate_up_proj` or `mlp.experts.down_proj` of a block.

| format | integers | scales | a weight is |
|---|---|---|---|
| float-quantized | NAME or NAME.weight, float8 e4m3 (E, N, K) | NAME.weight_scale (E, N, 1) | value times scale |
| mxfp4-pack-quantized | NAME.weight_packed, uint8 (E, N, K / 2) | NAME.weight_scale, uint8 (E, N, K / 32) | below |

A byte of MXFP4 holds the even column in its low nibble and the odd one in its high nibble, as e2m1 floats (a sign and
one of 0, 0.5, 1, 1.5, 2, 3, 4, 6); a scale byte s stands for 2^(s - 127) over 32 columns (OCP Microscaling Formats).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from openzaya.model.storage import Archive

FP8, MXFP4 = "float-quantized", "mxfp4-pack-quantized"
_GROUP = 32
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
_BIAS = 127
_SCALES = ".weight_scale"
_SCALE_TYPES = {FP8: ("F32", "BF16", "F16"), MXFP4: ("U8", "F8_E8M0")}
_CODE_TYPES = {FP8: ("F8_E4M3",), MXFP4: ("U8", "I8")}
_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class _Compressed:
    """One tensor of the model as two of the file."""

    format: str
    codes: str
    scales: str
    shape: tuple[int, ...]


class CompressedArchive(Archive):
    """The tensors of such a folder under their plain names, dequantised to float32 as they are read.

    Raises ValueError, in one sentence, for a format that is none of the two, or tensors that do not fit together.
    """

    def __init__(
        self, folder: str | Path, quantization: Mapping[str, Any], awaited: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        super().__init__(folder, awaited)
        formats = _formats(quantization)
        if not formats or not formats <= {FP8, MXFP4}:
            raise ValueError(
                f"{self.folder} is compressed as {' and '.join(sorted(formats)) or 'nothing known'}; openzaya "
                f"reads {FP8} and {MXFP4}, or the plain checkpoint that this one was made from"
            )
        self._compressed: dict[str, _Compressed] = {}
        for scales in [name for name in super().names if name.endswith(_SCALES)]:
            module = scales.removesuffix(_SCALES)
            # Stacks of experts are parameters themselves; a projection of attention would be a module's `weight`.
            native = module if ".experts." in module else f"{module}.weight"
            self._compressed[native] = self._pair(module, scales)
        if not self._compressed:
            raise ValueError(f"{self.folder} is compressed by its config.json, but has no scales; download it again")

    @property
    def names(self) -> list[str]:
        hidden = {part for entry in self._compressed.values() for part in (entry.codes, entry.scales)}
        return [name for name in super().names if name not in hidden] + list(self._compressed)

    def file(self, name: str) -> Path:
        return super().file(self._compressed[name].codes if name in self._compressed else name)

    def files(self, name: str) -> frozenset[Path]:
        if name not in self._compressed:
            return super().files(name)
        entry = self._compressed[name]
        return super().files(entry.codes) | super().files(entry.scales)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._compressed[name].shape if name in self._compressed else super().shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Of a compressed tensor, that of the embedding: what the model was before."""
        return super().dtype(_EMBEDDING if name in self._compressed else name)

    def read(self, name: str) -> Tensor:
        if name not in self._compressed:
            return super().read(name)
        return self._restored(self._compressed[name], slice(None))

    def read_slice(self, name: str, index: int) -> Tensor:
        if name not in self._compressed:
            return super().read_slice(name, index)
        return self._restored(self._compressed[name], index)

    def _pair(self, name: str, scales: str) -> _Compressed:
        present = set(super().names)
        packed = [each for each in (f"{name}.weight_packed", f"{name}_packed") if each in present]
        plain = [each for each in (f"{name}.weight", name) if each in present]
        if len(packed) + len(plain) != 1:
            found = "several tensors" if packed or plain else "no tensor"
            raise ValueError(
                f"{super().file(scales)} holds {scales}, but {found} that it belongs to; download the folder again"
            )
        format_ = MXFP4 if packed else FP8
        codes = (packed or plain)[0]
        *lead, columns = super().shape(codes)
        shape = (*lead, 2 * columns) if packed else (*lead, columns)
        expected = (*lead, shape[-1] // _GROUP) if packed else (*lead, 1)
        for part, types in ((codes, _CODE_TYPES[format_]), (scales, _SCALE_TYPES[format_])):
            if (stored := self.stored_type(part)) not in types:
                raise ValueError(
                    f"{super().file(part)}: {part} is stored as {stored}, not as {types[0]}; download the folder again"
                )
        if super().shape(scales) != expected or (packed and shape[-1] % _GROUP):
            raise ValueError(
                f"{super().file(scales)}: {scales} has the shape {list(super().shape(scales))}, but {codes} asks for "
                f"{list(expected)}; download the folder again"
            )
        return _Compressed(format_, codes, scales, shape)

    def stored_type(self, name: str) -> str:
        return super().stored_type(self._compressed[name].codes if name in self._compressed else name)

    def _restored(self, entry: _Compressed, index: int | slice) -> Tensor:
        codes, scales = super().read(entry.codes)[index], super().read(entry.scales)[index]
        return restore_fp8(codes, scales) if entry.format == FP8 else restore_mxfp4(codes, scales)


def restore_fp8(codes: Tensor, scales: Tensor) -> Tensor:
    """float8 (..., N, K) and scales (..., N, 1) to float32 (..., N, K)."""
    return codes.float() * scales.float()


def restore_mxfp4(packed: Tensor, scales: Tensor) -> Tensor:
    """Bytes (..., N, K / 2) and exponents (..., N, K / 32) to float32 (..., N, K)."""
    octets = packed.view(torch.uint8)
    values = _VALUES[torch.stack([octets & 15, octets >> 4], dim=-1).int()].flatten(-2)
    powers = torch.exp2(scales.view(torch.uint8).float() - _BIAS)
    return (values.unflatten(-1, (-1, _GROUP)) * powers[..., None]).flatten(-2)


def _formats(quantization: Mapping[str, Any]) -> set[str]:
    """The formats that config.json names, for the folder or for each group of its modules."""
    groups = quantization.get("config_groups")
    entries = groups.values() if isinstance(groups, dict) else ()
    named = {group["format"] for group in entries if isinstance(group, dict) and isinstance(group.get("format"), str)}
    # Where groups name theirs, the one of the folder may only say that they are mixed.
    whole = quantization.get("format")
    return named or ({whole} if isinstance(whole, str) else set())
