"""Counts from compiled kernels, without a GPU: registers, instructions, numbers loaded per output.

    python -m bench.static                          # all rows, for sm_90; ten minutes and more
    python -m bench.static --only "C64 K5 forward"  # rows with all these words
    python -m bench.static --save                   # writes bench/results/static.json

A row is one launch of one call, for a program whose tile needs no masks. Columns: registers of a
thread, bytes of its stack, instructions of the whole kernel, seconds to compile it with an empty
cache; then instructions in a trip through its loop over channels, thread instructions of that loop
per output, and of the whole program per output; numbers and bytes of the input that are loaded for
an output; pixels that a load instruction of the spatial filter is for; and how often some
instructions are in the loop. A kernel without such a loop (its products on tensor cores, or its
loop one over taps) is counted from the first instruction to the last. A line with "missed" follows
a row that breaks a limit of static_gates.py.
"""

import sys
from collections.abc import Iterator

from bench import static_table
from bench.compiled import compile_cold
from bench.static_count import Row, count
from bench.static_gates import missed
from bench.static_problems import Problem, launches, problems, row_name
from bench.static_results import FILE, collect, save
from bench.static_table import TARGET
from kpnops._decoupled_filter.plan import Launch

COLUMNS = {
    "registers": "registers",
    "stack": "stack_bytes",
    "SASS": "instructions",
    "seconds": "compile_seconds",
    "loop": "loop_instructions",
    "/output": "loop_per_output",
    "path/output": "path_per_output",
    "x/output": "input_numbers_per_output",
    "bytes": "input_bytes_per_output",
    "pixels/S": "pixels_per_spatial_load",
}
_NAME_WIDTH = 84


def names() -> list[str]:
    """Return the names of all rows, without compiling any."""
    return [row_name(*item) for item in chosen()]


def chosen(only: str = "") -> Iterator[tuple[Problem, str, Launch]]:
    """Yield problem, pass and launch of the rows whose names have all words of ``only``, in any
    order; part of the kernel's name is enough."""
    for problem in problems():
        for pass_name, launch in launches(problem):
            *words, kernel = row_name(problem, pass_name, launch).split()
            if all(word in words or word in kernel for word in only.split()):
                yield problem, pass_name, launch


def heading() -> str:
    """Return the first line of the table."""
    return static_table.heading(COLUMNS, _NAME_WIDTH)


def line(row: Row) -> str:
    """Return a row as a line of the table."""
    return static_table.line(row, COLUMNS, _NAME_WIDTH)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a row breaks a limit."""
    parser = static_table.option_parser("bench.static", __doc__, FILE)
    options = parser.parse_args(arguments)
    static_table.require_all_to_save(parser, options)
    selected = list(chosen(options.only))
    if not selected:
        parser.error(f"no row has all words of {options.only!r}; the first: {names()[:3]}")
    compile_cold(selected[0][2], options.target)  # so that no row has the time of imports
    print(heading())
    found, misses = [], 0
    for problem, pass_name, launch in selected:
        try:
            row = count(problem, pass_name, launch, options.target, cold=True)
        except ValueError as error:
            said = [f"{row_name(problem, pass_name, launch)} is not counted: {error}"]
        else:
            found.append(row)
            print(line(row), flush=True)
            said = missed(row)
        for sentence in said:
            print(f"    missed: {sentence}", flush=True)
        misses += len(said)
    print(f"{len(found)} rows, {misses} limits missed")
    if options.save and len(found) == len(selected):
        save(collect(found, TARGET), FILE)
    return int(misses > 0)


if __name__ == "__main__":
    sys.exit(main())
