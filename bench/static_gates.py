"""Limits that counts from compiled kernels must keep, whatever else a change brings."""

from collections.abc import Iterator

from bench.sass import TENSOR_PRODUCTS
from bench.static_count import Row
from bench.static_problems import BACKWARD, FORWARD

# Cold, the assembler takes a second for every few thousand.
MOST_INSTRUCTIONS = 6000
# Of the K^2 numbers of an output, by kernel size: row reuse loads K (ROWS + K - 1) / ROWS, and less
# where loads are joined. At K = 7 the 49 taps of two pixels fill the registers: too few.
MOST_INPUT_WORDS = {3: 0.4, 5: 0.4}
LEAST_PIXELS_A_LOAD = 2
# Thread instructions per output of the forward with a gain per pixel, by kernel size: what row
# reuse and the product on tensor cores were seen to need. Other widths cannot join loads.
ROW_REUSE = {
    ("float32", "W16"): {3: 22, 5: 48},
    ("float32", "Wodd"): {3: 28, 5: 52},
    ("bfloat16", "W16"): {3: 31, 5: 76},
}
BANDED = {
    ("bfloat16", "W16"): {3: 30, 5: 40},
    ("bfloat16", "Wodd"): {3: 62, 5: 80},
}
# Registers of a thread of row reuse by kernel size, of 255 that there are: at 168 three programs of
# 128 threads share a multiprocessor, beyond that two.
MOST_REGISTERS = {FORWARD: {3: 168, 5: 224}, BACKWARD: {3: 200}}
MOST_REGISTERS_BANDED = {FORWARD: {3: 168, 5: 168, 7: 168}}


def is_banded(row: Row) -> bool:
    """Whether the products are made on tensor cores."""
    return any(name in TENSOR_PRODUCTS for name in row.counts)


def missed(row: Row) -> list[str]:
    """Return what a row misses, one sentence each; empty if it keeps all limits."""
    return list(_missed(row))


def _missed(row: Row) -> Iterator[str]:
    problem = row.problem
    if row.stack_bytes:
        yield f"spills {row.stack_bytes} bytes"
    if row.instructions > MOST_INSTRUCTIONS:
        yield f"{row.instructions} instructions > {MOST_INSTRUCTIONS}"
    budgets = MOST_REGISTERS_BANDED if is_banded(row) else MOST_REGISTERS
    most = budgets.get(row.pass_name, {}).get(problem.kernel_size, 255)
    if row.registers > most:
        yield f"{row.registers} registers > {most}"
    if row.pass_name == FORWARD:
        yield from _missed_by_forward(row)


def _missed_by_forward(row: Row) -> Iterator[str]:
    problem, banded = row.problem, is_banded(row)
    joined = problem.width == "W16"
    share = MOST_INPUT_WORDS.get(problem.kernel_size, 1.0)
    words, most = row.input_bytes_per_output / 4, share * problem.kernel_size**2
    if joined and not banded and problem.channels >= 16 and words > most:
        yield f"{words:.2f} input words per output > {most:.2f}"
    pixels = row.pixels_per_spatial_load
    if joined and not banded and pixels is not None and pixels < LEAST_PIXELS_A_LOAD:
        yield f"{pixels} pixels for a load of the spatial filter < {LEAST_PIXELS_A_LOAD}"
    if problem.form != "pixel" or problem.input_dtype != problem.filter_dtype:
        return
    limits = (BANDED if banded else ROW_REUSE).get((problem.input_dtype, problem.width), {})
    limit = limits.get(problem.kernel_size)
    # a program of the banded product prepares much before it multiplies, so that all of it counts
    spent = row.path_per_output if banded or row.loop_per_output is None else row.loop_per_output
    if limit is not None and spent > limit:
        yield f"{spent} thread instructions per output > {limit}"
