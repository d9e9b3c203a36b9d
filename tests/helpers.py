"""What the tests share, under one name: problems, routes, layouts, the oracle and its budgets."""

from tests.budgets import (
    FLOAT64_BUDGET,
    Budget,
    Expected,
    check,
    compare,
    expected_results,
    relative_errors,
    run_operator,
)
from tests.cases import Case, Operands
from tests.layouts import LAYOUTS, arrange, embed, has_promised_format
from tests.oracle import (
    GRADIENTS,
    oracle_backward,
    oracle_forward,
    oracle_magnitudes,
    run_oracle,
    source_index,
    to_numpy,
)
from tests.routes import (
    COMPILED_ROUTES,
    CPU,
    INTERPRETED,
    ON_GPU,
    ON_INTERPRETER,
    ROUTES,
)

__all__ = [
    "COMPILED_ROUTES",
    "CPU",
    "FLOAT64_BUDGET",
    "FORMS",
    "GRADIENTS",
    "INTERPRETED",
    "LAYOUTS",
    "ON_GPU",
    "ON_INTERPRETER",
    "PADDING_MODES",
    "ROUTES",
    "Budget",
    "Case",
    "Expected",
    "Operands",
    "arrange",
    "check",
    "compare",
    "embed",
    "expected_results",
    "has_promised_format",
    "oracle_backward",
    "oracle_forward",
    "oracle_magnitudes",
    "relative_errors",
    "run_operator",
    "run_oracle",
    "source_index",
    "to_numpy",
]

PADDING_MODES = ["zeros", "replicate", "reflect", "circular"]
FORMS = ["none", "image", "pixel", "mix"]  # of the channel filter
