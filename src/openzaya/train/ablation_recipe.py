"""`[ablation]` of a recipe: which parts of ZAYA1 a model is trained without."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator


class AblationRecipe(BaseModel):
    """Parts of ZAYA1 left out, or replaced by what they are claimed to be better than, for experiments.

    Parts that do nothing at some value of their parameters are held there and not learned, so such a model is still a
    ZAYA1. The others change the computation: such a model fits no published layout, and its phases leave their state
    and no checkpoint folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    router: Literal["mlp", "linear"] = "mlp"
    """"linear": one matrix from the normed stream to the classes, no depth averaging."""
    depth_averaging: bool = True
    """False: a router sees no state of the one below; its scale is held at 0."""
    residual_scaling: bool = True
    """False: scales and biases of the residual stream, the embedding's included, are held where they start."""
    convolutions: Literal[0, 1, 2] = 2
    """Of CCA's convolutions those that are learned: both, the depthwise one, or none; the others pass on what they
    get (CCA paper, table IV)."""
    qk_mean: bool = True
    """False: the mean of queries and keys is not added to what the convolutions give."""
    value_shift: bool = True
    """False: no value comes from the token before."""

    @model_validator(mode="after")
    def _consistent(self) -> AblationRecipe:
        if self.router == "linear" and not self.depth_averaging:
            raise ValueError("a linear router has no depth averaging to leave out; remove depth_averaging = false")
        return self

    @property
    def fits_layout(self) -> bool:
        """Whether the model that is left computes as a ZAYA1 does, so that its checkpoints can be written."""
        return self.router == "mlp" and self.qk_mean and self.value_shift
