"""Which operations run in float32: the two published answers, as named profiles.

`hf` is what transformers does: everything in the model's dtype but the residual stream and the statistics of RMSNorm.
`report` adds the float32 operations that the ZAYA1-8B report lists in section IV-D (LM head, QK-mean, QK-norm, RMSNorm,
router softmax, CCA cache state), which keep a trainer and an engine in agreement in bfloat16. In float32 the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Numerics:
    """A named set of operations that are lifted to float32."""

    name: str
    lift: bool

    def up(self, tensor: Tensor) -> Tensor:
        """`tensor` in float32 where this profile lifts its operations, else as it is."""
        return tensor.float() if self.lift else tensor

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype of the convolution columns and the delayed value that a cache keeps."""
        return torch.float32 if self.lift else dtype


HF = Numerics("hf", lift=False)
REPORT = Numerics("report", lift=True)


def numerics_profile(name: str) -> Numerics:
    """The profile called `name`; raises ValueError for an unknown one."""
    for profile in (HF, REPORT):
        if profile.name == name:
            return profile
    raise ValueError(f"numerics is {name!r}; the profiles are 'hf' and 'report'")
