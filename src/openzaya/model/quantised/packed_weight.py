"""A weight that stays packed in codes and scales, in the place of the tensor it stands for.

The model's own layers compute with it: it is what torch calls a tensor-like, so `F.linear` and `F.embedding` ask it in
place of computing. There is one forward, whatever its weights are kept in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openzaya.model.quantised.container import Container
from openzaya.model.quantised.matrices import Matrix
from openzaya.model.quantised.packed_product import packed_product, packed_rows
from openzaya.model.quantised.packing import DTYPES, QuantisedMatrix
from openzaya.model.quantised.scheme import Scheme


class PackedWeight(nn.Module):
    """One matrix of a container, or one an expert, as a weight of dtype `dtype` without gradients.

    It answers `F.linear`, `F.embedding` and `grouped_product`. Its buffers `codes` and `scales` move with the model,
    but are never cast; a cast of the model changes `dtype`.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, matrix: Matrix, scheme: Scheme, dtype: torch.dtype, device: torch.device | str) -> None:
        """The buffers are allocated and hold nothing yet."""
        super().__init__()
        self.matrix, self.scheme, self.dtype = matrix, scheme, dtype
        codes_type, scales_type = DTYPES[scheme.code_type], DTYPES[scheme.scale_type]
        self.register_buffer("codes", torch.empty(matrix.codes_shape(scheme), dtype=codes_type, device=device))
        self.register_buffer("scales", torch.empty(matrix.scales_shape(scheme), dtype=scales_type, device=device))

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K), or (E, N, K) of experts."""
        stack = () if self.matrix.experts is None else (self.matrix.experts,)
        return (*stack, self.matrix.rows, self.matrix.columns)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def grouped_product(self, x_TK: Tensor, ends_E: Tensor) -> Tensor:
        """`x` sorted by expert times the transposed matrix of each; see `packed_product`."""
        return packed_product(x_TK, self._quantised, ends_E)

    def float(self) -> PackedWeight:
        """Itself: a product with float32 activations is one of float32 numbers."""
        return self

    def extra_repr(self) -> str:
        return f"{' x '.join(map(str, self.shape))}, {self.scheme}, {self.dtype}"

    @property
    def _quantised(self) -> QuantisedMatrix:
        return QuantisedMatrix(self.codes, self.scales, self.scheme, self.matrix.rows, self.matrix.interleaved)

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        x, weight, *options = args
        if function is F.linear and not any(option is not None for option in options):
            product_TN = packed_product(x.flatten(0, -2), weight._quantised)
            return product_TN.unflatten(0, x.shape[:-1]) if x.ndim != 2 else product_TN
        if function is F.embedding:
            return packed_rows(x, weight._quantised, weight.dtype)
        return NotImplemented

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedWeight:
        kept = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != kept.dtype:
            self.scales = kept.to(self.scales.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=kept.device)).dtype
        return self


def load_packed(model: nn.Module, container: Container, dtype: torch.dtype, device: torch.device) -> None:
    """Fill `model`, built on the meta device for `container`, with its tensors as they are stored.

    Weights that are quantised become `PackedWeight`s under the names of the container's matrices. No parameter
    requires a gradient afterwards.
    """
    for matrix in container.matrices.values():
        _put(model, PackedWeight(matrix, container.scheme, dtype, "meta"))
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
    model.requires_grad_(False)
    for name, tensor in model.state_dict().items():
        tensor.copy_(container.tensor(name))


def _put(model: nn.Module, weight: PackedWeight) -> None:
    """Set a weight in the place of the one it is called after, and without the layers whose rows it stacks."""
    for part in weight.matrix.parts:
        if part.native != weight.matrix.name:
            parent, layer, _ = part.native.rsplit(".", 2)
            delattr(model.get_submodule(parent), layer)
    parent, _, attribute = weight.matrix.name.rpartition(".")
    holder = model.get_submodule(parent)
    if hasattr(holder, attribute):
        delattr(holder, attribute)
    setattr(holder, attribute, weight)
