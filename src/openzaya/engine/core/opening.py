"""From a container of quantised weights to what the compiled executor computes with."""

from __future__ import annotations

from openzaya.engine.core.plan import QuantisedWeights
from openzaya.engine.core.products import PackedMatrix
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.matrices import plain_tensors


def weights_of(container: Container) -> QuantisedWeights:
    """The weights of `container`: matrices stay in its mapped file, everything else is copied to float32."""
    matrices = {}
    for name in container.matrices:
        matrix = container.matrix(name)
        matrices[name] = PackedMatrix(matrix.codes.numpy(), matrix.scales.numpy(), matrix.rows)
    plain = {entry.native: container.tensor(entry.native).float().numpy() for entry in plain_tensors(container.config)}
    return QuantisedWeights(container.config, matrices, plain)
