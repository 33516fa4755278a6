"""The families of problems, in the fixed order of the registry."""

from __future__ import annotations

from openzaya.problems.families.chains import ARITHMETIC_CHAIN, MODULAR_CHAIN
from openzaya.problems.families.countdown import COUNTDOWN
from openzaya.problems.families.dates_units import DATES_UNITS
from openzaya.problems.families.equations import LINEAR_EQUATION
from openzaya.problems.families.factorisation import FACTORISATION
from openzaya.problems.families.lists import PRODUCTS_LIST, REMAINDERS_LIST, SUMS_LIST
from openzaya.problems.families.logic_order import LOGIC_ORDER
from openzaya.problems.families.long_arithmetic import COLUMN_ADDITION, LONG_MULTIPLICATION
from openzaya.problems.families.ordering import COUNTING, SORTING
from openzaya.problems.families.program_output import PROGRAM_OUTPUT
from openzaya.problems.families.sequences import SEQUENCE
from openzaya.problems.families.subset_sum import SUBSET_SUM
from openzaya.problems.family import Family

FAMILIES: tuple[Family, ...] = (
    ARITHMETIC_CHAIN,
    MODULAR_CHAIN,
    LINEAR_EQUATION,
    REMAINDERS_LIST,
    SUMS_LIST,
    PRODUCTS_LIST,
    SEQUENCE,
    SORTING,
    COUNTING,
    COLUMN_ADDITION,
    LONG_MULTIPLICATION,
    COUNTDOWN,
    FACTORISATION,
    SUBSET_SUM,
    DATES_UNITS,
    PROGRAM_OUTPUT,
    LOGIC_ORDER,
)
