"""What the tables of counts share: their lines and their options."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.compiled import TARGETS

TARGET = "sm_90"


def heading(columns: Mapping[str, str], name_width: int) -> str:
    """Return the first line of a table; ``columns`` are headings and fields of a row."""
    return " ".join(["row".ljust(name_width), *(f"{name:>9}" for name in columns), " counts"])


def line(row: Any, columns: Mapping[str, str], name_width: int) -> str:
    """Return a row, which has a name and counts, as a line of its table."""
    cells = {name: getattr(row, field) for name, field in columns.items()}
    text = [f"{'-' if cell is None else cell:>{max(9, len(name))}}" for name, cell in cells.items()]
    counts = " ".join(f"{name} {number}" for name, number in row.counts.items())
    return " ".join([row.name.ljust(name_width), *text, " " + counts])


def option_parser(module: str, description: str | None, file: Path) -> argparse.ArgumentParser:
    """Return the options of a table's command."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="words that the names of rows must have")
    parser.add_argument("--target", default=TARGET, choices=[t for t in TARGETS if "sm_" in t])
    parser.add_argument("--save", action="store_true", help=f"write {file.name}: all rows, sm_90")
    return parser


def require_all_to_save(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Leave with an error where only some rows, or those of another target, would be saved."""
    if options.save and (options.only or options.target != TARGET):
        parser.error("--save needs all rows, for sm_90")
