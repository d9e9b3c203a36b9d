"""Counts as data: the schema of `bench/results/static.json`; written and read here.

A row is a line, so that a change of a kernel shows as the lines that it changes.
"""

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench.schema import parse
from bench.static_count import Row

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA = 1
FILE = Path(__file__).parent / "results" / "static.json"
Results = TypeVar("Results")


@dataclass(frozen=True)
class StaticResults:
    """The rows of one target, with everything that says where they come from."""

    schema: int
    date: str  # ISO 8601, UTC
    target: str
    versions: dict[str, str]
    rows: list[Row]


def collect(rows: list[Row], target: str) -> StaticResults:
    """Return the rows, sorted by name, with date and versions."""
    date, versions = stamp()
    return StaticResults(SCHEMA, date, target, versions, sorted(rows, key=lambda row: row.name))


def stamp() -> tuple[str, dict[str, str]]:
    """Return the date in UTC, and the versions of what compiles."""
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("kpnops", "torch", "triton")}
    return datetime.now(UTC).date().isoformat(), versions


def save(results: "DataclassInstance", path: Path) -> None:
    """Write results, of this table or another one with rows; an existing file is replaced only once
    the new one is whole.

    Compile times are kept in whole seconds: the rest differs from run to run.
    """
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


def load(path: Path) -> StaticResults:
    """Read results, see :func:`read`."""
    return read(path, StaticResults, SCHEMA, "bench.static")


def read(path: Path, kind: type[Results], schema: int, module: str) -> Results:
    """Read a file of counts and check it against its schema.

    Args:
        path: the file.
        kind: the dataclass that it holds.
        schema: the number of its schema.
        module: whose ``--save`` writes it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or not of this schema; names the field.
    """
    cure = f"run `python -m {module} --save` again"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {cure}")
    try:
        data = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); {cure}") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise ValueError(f"{path}: expected schema {schema}, got {found}; {cure}")
    try:
        return parse(kind, data, str(path))
    except ValueError as error:
        raise ValueError(f"{error}; {cure}") from error
