"""Results as data: one schema for every file in `bench/results/`, written and read here alone."""

import dataclasses
import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.any_case import AnyCase, case_from_json, case_to_json
from bench.cases import BACKWARD, FORWARD, FORWARD_BACKWARD, minimal_bytes
from bench.environment import (
    Hardware,
    commit,
    driver_version,
    file_name,
    hardware_of,
    source_digest,
    versions,
)
from bench.photo_cases import PhotoCase
from bench.schema import parse
from bench.step_cases import StepCase

SCHEMA = 2
MEASURED = "measured"
SKIPPED = "skipped"
FAILED = "failed"

# What a provider is to the comparison.
OWN = "own"  # kpnops, or a composition of it
ALTERNATIVE = "alternative"  # computes the same
YARDSTICK = "yardstick"  # does something else

# What a row's milliseconds are of.
WALL = "wall"  # wall clock of a call on a CPU
DEVICE = "device"  # between device events around a call
GRAPH = "graph"  # device time of a call within replays of a CUDA graph
HOST = "host"  # host time of a call on tiny tensors
COLD = "first call, cold"  # in a fresh process, nothing compiled on disk, imports excluded
WARM = "first call, warm"  # the same with everything compiled on disk
CLOCKS = (WALL, DEVICE, GRAPH, HOST, COLD, WARM)

MEBIBYTE = 2**20
# Cores that others may keep busy: a desktop's background. Every parallel loop waits for its slowest
# thread, so that more load stretches short loops tenfold and long ones hardly.
QUIET = 0.25


@dataclass(frozen=True)
class Row:
    """One provider on one case and pass; None where nothing was measured."""

    case: AnyCase
    pass_name: str  # "pass" in the file
    clock: str  # one of CLOCKS
    provider: str
    role: str  # OWN, ALTERNATIVE or YARDSTICK
    status: str  # MEASURED, SKIPPED or FAILED
    reason: str = ""  # why it was skipped or failed, else empty
    rounds: int = 0
    milliseconds: float | None = None  # median
    quartiles: tuple[float, float] | None = None  # in ms: the ends of the interquartile range
    fraction_of_copy: float | None = None  # a copy of as many bytes, in the same turns, over this
    peak_mebibytes: float | None = None  # of one call, results included, beyond its arguments
    saved_mebibytes: float | None = None  # kept for the backward, beyond arguments and result
    error: float | None = None  # largest error against the oracle as a multiple of its budget
    first_call_milliseconds: float | None = None  # in this process, code generation included
    other_load: float | None = None  # cores that other processes kept busy meanwhile
    commit: str = ""
    source: str = ""  # digest of the library's sources
    date: str = ""

    @property
    def group(self) -> str:
        """Name of the rows that are compared with each other."""
        clock = "" if self.clock in (WALL, DEVICE) else f" ({self.clock})"
        return f"{self.case.name} {self.pass_name}{clock}"

    @property
    def key(self) -> tuple[AnyCase, str, str, str]:
        """What no two rows of a file share."""
        return self.case, self.pass_name, self.clock, self.provider

    @property
    def minimal_bytes(self) -> int | None:
        """Memory traffic that the pass cannot go below, None of a whole network."""
        if isinstance(self.case, StepCase | PhotoCase):
            return None
        return minimal_bytes(self.case, self.pass_name)

    @property
    def gigabytes_per_second(self) -> float | None:
        """Those bytes over the median."""
        if self.milliseconds is None or self.minimal_bytes is None:
            return None
        return self.minimal_bytes / self.milliseconds / 1e6

    @property
    def megapixels_per_second(self) -> float | None:
        """Of photos over the median; None of anything else."""
        if self.milliseconds is None or not isinstance(self.case, PhotoCase):
            return None
        return 1e3 * self.case.megapixels / self.milliseconds

    @property
    def peak_mebibytes_per_megapixel(self) -> float | None:
        """Peak, results included, for each million pixels of one photo; None of anything else."""
        if self.peak_mebibytes is None or not isinstance(self.case, PhotoCase):
            return None
        return self.peak_mebibytes / (self.case.megapixels / self.case.batch)

    @property
    def bytes_beyond_results(self) -> float | None:
        """Peak beyond arguments, results and gradients; None of a whole network."""
        if self.peak_mebibytes is None or isinstance(self.case, StepCase | PhotoCase):
            return None
        return max(0.0, self.peak_mebibytes * MEBIBYTE - self._results_bytes)

    @property
    def memory_beyond_results(self) -> float | None:
        """The same as a share of arguments, cotangent, results and gradients."""
        beyond = self.bytes_beyond_results
        if beyond is None:
            return None
        cotangent = 0 if self.pass_name == FORWARD else self.case.result_bytes
        return beyond / (self.case.argument_bytes + cotangent + self._results_bytes)

    @property
    def _results_bytes(self) -> int:
        case = self.case
        return {
            FORWARD: case.result_bytes,
            BACKWARD: case.argument_bytes,
            FORWARD_BACKWARD: case.result_bytes + case.argument_bytes,
        }[self.pass_name]


@dataclass(frozen=True)
class GpuTests:
    """What the tests marked gpu said."""

    source: str  # digest of the library's sources that were tested
    date: str
    complete: bool  # whether all of them ran
    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: list[str]  # names, at most 20 of them


@dataclass(frozen=True)
class Header:
    """Where the rows come from; a row measured at another commit says so itself."""

    device: str  # as the file is called, such as "nvidia-h200"
    date: str  # ISO 8601, UTC
    commit: str
    hardware: Hardware
    driver: str | None
    versions: dict[str, str]
    copy_gigabytes_per_second: float | None  # device copy of a large buffer, reads plus writes
    tests: GpuTests | None


@dataclass(frozen=True)
class Results:
    """What was measured on one device."""

    header: Header
    rows: list[Row]


def make_header(
    device: torch.device, copy_rate: float | None = None, tests: GpuTests | None = None
) -> Header:
    """Return the header of a run that is made now.

    Args:
        device: where it is made.
        copy_rate: GB/s of a copy on it, where measured.
        tests: what the GPU tests said, where they ran.

    Returns:
        The header.
    """
    hardware = hardware_of(device)
    return Header(
        file_name(hardware),
        now(),
        commit(),
        hardware,
        driver_version(device),
        versions(),
        copy_rate,
        tests,
    )


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def stamped(row: Row) -> Row:
    """Return the row with the commit, the sources and the time of now."""
    return dataclasses.replace(row, commit=commit(), source=source_digest(), date=now())


def with_durations(row: Row, durations: list[float]) -> Row:
    """Return the row with the median and the quartiles of durations in seconds."""
    if len(durations) == 1:
        durations = durations * 2
    lower, median, upper = (
        1e3 * value for value in statistics.quantiles(durations, n=4, method="inclusive")
    )
    return dataclasses.replace(
        row, rounds=len(durations), milliseconds=median, quartiles=(lower, upper)
    )


def merge(rows: Iterable[Row], newer: Iterable[Row]) -> list[Row]:
    """Return the rows of both, the newer where both have one, in the order of first appearance."""
    merged = {row.key: row for row in rows}
    merged.update({row.key: row for row in newer})
    return list(merged.values())


def groups_of(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each group, groups in the order of their first rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def save(results: Results, path: Path) -> None:
    """Write results as JSON, a row on a line; a file is replaced only once the new one is whole.

    Args:
        results: what to write.
        path: the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps(dataclasses.asdict(results.header), indent=1, ensure_ascii=False)
    rows = ",\n".join(json.dumps(row_to_json(row), ensure_ascii=False) for row in results.rows)
    text = f'{{"schema": {SCHEMA},\n"header": {header},\n"rows": [\n{rows}\n]}}\n'
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def load(path: Path) -> Results:
    """Read results and check them against the schema.

    Args:
        path: a file that `save` wrote.

    Returns:
        The results.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or not of this schema; names the field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `pytest bench/` writes such a file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); measure again") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {found}; measure again")
    if data.keys() != {"schema", "header", "rows"} or not isinstance(data["rows"], list):
        raise ValueError(f"{path}: expected schema, header and a list of rows, got {sorted(data)}")
    rows = [row_from_json(row, f"{path}.rows[{i}]") for i, row in enumerate(data["rows"])]
    return Results(parse(Header, data["header"], f"{path}.header"), rows)


def row_to_json(row: Row) -> dict[str, Any]:
    """Return the row as the file holds it."""
    data = {"case": case_to_json(row.case), "dtype": row.case.dtype, "pass": row.pass_name}
    others = dataclasses.fields(row)[2:]
    return data | {field.name: getattr(row, field.name) for field in others}


def row_from_json(data: Any, where: str = "row") -> Row:
    """Return the row that `row_to_json` wrote.

    Args:
        data: parsed JSON.
        where: how an error calls it.

    Returns:
        The row.

    Raises:
        ValueError: it is not of the schema; names the field.
    """
    names = {"dtype", "pass", *(field.name for field in dataclasses.fields(Row))} - {"pass_name"}
    if not isinstance(data, dict) or data.keys() != names:
        found = sorted(data) if isinstance(data, dict) else data
        raise ValueError(f"{where}: expected the fields {sorted(names)}, got {found!r}")
    dtype = parse(str, data["dtype"], f"{where}.dtype")
    case = case_from_json(data["case"], dtype, where)
    values = {key: value for key, value in data.items() if key not in ("case", "dtype", "pass")}
    values["pass_name"] = data["pass"]
    return parse(Row, values, where, given={"case": case})
