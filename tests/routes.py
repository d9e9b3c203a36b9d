"""Where the tests run: on the CPU, in Triton's interpreter, on a GPU."""

import os

import pytest

# Triton decides by this variable, when a kernel is defined, whether to interpret it.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "yes", "on", "y"}

CPU = "cpu"
ON_INTERPRETER = pytest.param("interpreted", marks=pytest.mark.interpreted)
ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)
ROUTES = [CPU, ON_INTERPRETER, ON_GPU]
COMPILED_ROUTES = [CPU, ON_GPU]  # for what would take minutes in the interpreter
