"""Counts from the compiled kernels of the fused head, without a GPU, in a table of their own.

    python -m bench.static_head                        # all rows, for sm_90; some minutes
    python -m bench.static_head --only "K21 tf32"      # rows with all these words
    python -m bench.static_head --save                 # writes bench/results/static-head.json

A row is one launch: registers of a thread, bytes of its stack, instructions of the whole kernel,
seconds to compile it with an empty cache, instructions of a trip through its longest loop, thread
instructions for a pixel and tap, and how often some instructions are in that loop (without one, in
the whole path). The one limit is that nothing spills; the other figures show what a change did.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import static_table
from bench.compiled import compile_cold
from bench.static_head_count import HeadProblem, HeadRow, count_head, head_launches, head_problems
from bench.static_results import read, save, stamp
from bench.static_table import TARGET
from kpnops._decoupled_filter.plan import Launch

SCHEMA = 1
FILE = Path(__file__).parent / "results" / "static-head.json"
COLUMNS = {
    "registers": "registers",
    "stack": "stack_bytes",
    "SASS": "instructions",
    "seconds": "compile_seconds",
    "loop": "loop_instructions",
    "/tap": "per_tap",
}
_NAME_WIDTH = 66


@dataclass(frozen=True)
class HeadStaticResults:
    """The rows of one target, with everything that says where they come from."""

    schema: int
    date: str  # ISO 8601, UTC
    target: str
    versions: dict[str, str]
    rows: list[HeadRow]


def names() -> list[str]:
    """Return the names of all rows, without compiling any."""
    return [name for _, _, name, _ in chosen()]


def chosen(only: str = "") -> Iterator[tuple[HeadProblem, str, str, Launch]]:
    """Yield problem, pass, name and launch of the rows whose names have all words of ``only``."""
    for problem in head_problems():
        for pass_name, name, launch in head_launches(problem):
            if set(only.split()) <= set(name.split()):
                yield problem, pass_name, name, launch


def missed(row: HeadRow) -> list[str]:
    """Return what a row misses, one sentence each; empty if it keeps the limit."""
    return [f"spills {row.stack_bytes} bytes"] if row.stack_bytes else []


def heading() -> str:
    """Return the first line of the table."""
    return static_table.heading(COLUMNS, _NAME_WIDTH)


def line(row: HeadRow) -> str:
    """Return a row as a line of the table."""
    return static_table.line(row, COLUMNS, _NAME_WIDTH)


def collect(rows: list[HeadRow], target: str) -> HeadStaticResults:
    """Return the rows, sorted by name, with date and versions."""
    date, versions = stamp()
    ordered = sorted(rows, key=lambda row: row.name)
    return HeadStaticResults(SCHEMA, date, target, versions, ordered)


def load(path: Path) -> HeadStaticResults:
    """Read results, see :func:`bench.static_results.read`."""
    return read(path, HeadStaticResults, SCHEMA, "bench.static_head")


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a row spills."""
    parser = static_table.option_parser("bench.static_head", __doc__, FILE)
    options = parser.parse_args(arguments)
    static_table.require_all_to_save(parser, options)
    selected = list(chosen(options.only))
    if not selected:
        parser.error(f"no row has all words of {options.only!r}; the first: {names()[:3]}")
    compile_cold(selected[0][3], options.target)  # so that no row has the time of imports
    print(heading())
    found, misses = [], 0
    for problem, pass_name, name, launch in selected:
        row = count_head(problem, pass_name, name, launch, options.target, cold=True)
        found.append(row)
        print(line(row), flush=True)
        for sentence in missed(row):
            print(f"    missed: {sentence}", flush=True)
            misses += 1
    print(f"{len(found)} rows, {misses} limits missed")
    if options.save:
        save(collect(found, TARGET), FILE)
    return int(misses > 0)


if __name__ == "__main__":
    sys.exit(main())
