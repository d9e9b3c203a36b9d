"""Counts from the compiled kernels of the fused head, without a GPU, in a table of their own.

    python -m bench.static_head                        # all rows, for sm_90; some minutes
    python -m bench.static_head --only "K21 tf32"      # rows with all these words
    python -m bench.static_head --save                 # writes bench/results/static-head.json

A row is one launch: registers of a thread, bytes of its stack, instructions of the whole kernel,
seconds to compile it with an empty cache, instructions of a trip through its longest loop, thread
instructions for a pixel and tap, and how often some instructions are in that loop (without one, in
the whole path). The one limit is that nothing spills; the other figures show what a change did.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.compiled import TARGETS, compile_cold
from bench.schema import parse
from bench.static_head_count import HeadProblem, HeadRow, count_head, head_launches, head_problems
from bench.static_results import stamp
from kpnops._decoupled_filter.plan import Launch

TARGET = "sm_90"
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
_CURE = "run `python -m bench.static_head --save` again"


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
    return " ".join(["row".ljust(_NAME_WIDTH), *(f"{name:>9}" for name in COLUMNS), " counts"])


def line(row: HeadRow) -> str:
    """Return a row as a line of the table."""
    cells = [getattr(row, field) for field in COLUMNS.values()]
    text = [f"{'-' if cell is None else cell:>9}" for cell in cells]
    counts = " ".join(f"{name} {number}" for name, number in row.counts.items())
    return " ".join([row.name.ljust(_NAME_WIDTH), *text, " " + counts])


def collect(rows: list[HeadRow], target: str) -> HeadStaticResults:
    """Return the rows, sorted by name, with date and versions."""
    date, versions = stamp()
    ordered = sorted(rows, key=lambda row: row.name)
    return HeadStaticResults(SCHEMA, date, target, versions, ordered)


def save(results: HeadStaticResults, path: Path) -> None:
    """Write results, a row on a line, compile times in whole seconds; an existing file is replaced
    only once the new one is whole."""
    data = dataclasses.asdict(results)
    for row in data["rows"]:
        if row["compile_seconds"] is not None:
            row["compile_seconds"] = float(round(row["compile_seconds"]))
    rows = ",\n".join("  " + json.dumps(row) for row in data.pop("rows"))
    header = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(f'{{\n{header},\n "rows": [\n{rows}\n ]\n}}\n')
    os.replace(partial, path)


def load(path: Path) -> HeadStaticResults:
    """Read results and check them against the schema.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or not of this schema; names the field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {_CURE}")
    try:
        data = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); {_CURE}") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {found}; {_CURE}")
    try:
        return parse(HeadStaticResults, data, str(path))
    except ValueError as error:
        raise ValueError(f"{error}; {_CURE}") from error


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a row spills."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.static_head",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="words that the names of rows must have")
    parser.add_argument("--target", default=TARGET, choices=[t for t in TARGETS if "sm_" in t])
    parser.add_argument("--save", action="store_true", help=f"write {FILE.name}: all rows, sm_90")
    options = parser.parse_args(arguments)
    if options.save and (options.only or options.target != TARGET):
        parser.error("--save needs all rows, for sm_90")
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
