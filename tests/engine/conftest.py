"""What the tests of the compiled core need of the machine."""

from __future__ import annotations

import pytest

from openzaya.engine.core.products import CoreUnavailable, supported_variants


@pytest.fixture(scope="session")
def variants() -> tuple[str, ...]:
    """Instruction sets of the core that this machine runs, best last; without a core the test is skipped."""
    try:
        return supported_variants()
    except CoreUnavailable as error:
        pytest.skip(str(error))
