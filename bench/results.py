"""Results as data: one schema for every file in `bench/results/`, written and read here alone."""

import dataclasses
import json
import os
import platform
import types
import typing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.cases import FORWARD, FORWARD_BACKWARD, Case
from bench.providers import EAGER_UNFOLD, KPNOPS

SCHEMA = 1
MEASURED = "measured"
SKIPPED = "skipped"
FAILED = "failed"
# Cores that others may keep busy: a desktop's background. Every parallel loop waits for its slowest
# thread, so that more load stretches short loops tenfold and long ones hardly.
QUIET = 0.25


@dataclass(frozen=True)
class Row:
    """One provider on one case and pass. Times in seconds; None where nothing was measured."""

    case: Case
    pass_name: str
    provider: str
    yardstick: bool  # does something else than the op
    status: str  # MEASURED, SKIPPED or FAILED
    reason: str  # why it was skipped or failed, else empty
    minimal_bytes: int  # traffic that the pass cannot go below
    rounds: int = 0
    median: float | None = None
    quartiles: tuple[float, float] | None = None
    first_call: float | None = None  # code generation included
    peak_bytes: int | None = None  # of one call, beyond its arguments
    saved_bytes: int | None = None  # kept for the backward, beyond arguments and result
    error: float | None = None  # largest error as a multiple of its rounding budget
    bytes_per_second: float | None = None  # minimal bytes over the median
    fraction_of_copy: float | None = None  # against a copy of as many bytes in the same turns
    time_over_kpnops: float | None = None  # above 1: slower than kpnops
    time_over_best_alternative: float | None = None  # kpnops itself: below 1 is a win
    other_load: float | None = None  # cores that other processes kept busy meanwhile

    @property
    def group(self) -> str:
        """Name of the rows that are compared with each other."""
        return f"{self.case.name} {self.pass_name}"


@dataclass(frozen=True)
class Goal:
    """A ratio of eager unfold's time to kpnops's on the CPU that is asked for."""

    case: Case
    pass_name: str
    asked: float

    @property
    def name(self) -> str:
        """Unique name of the goal."""
        return f"{self.case.name} {self.pass_name}"


GOALS = [
    Goal(case, pass_name, asked)
    for case in (Case(1, 3, 512, 512, 5), Case(1, 32, 256, 256, 3))
    for pass_name, asked in ((FORWARD, 10.0), (FORWARD_BACKWARD, 3.0))
]


@dataclass(frozen=True)
class GoalOutcome:
    """What was reached of a goal."""

    name: str
    asked: float
    reached: float
    met: bool
    quiet: bool  # whether the machine had nothing else to do


@dataclass(frozen=True)
class Hardware:
    """What the rows were measured on."""

    device: str  # "cpu" or "cuda"
    name: str  # of the CPU or the GPU that ran the rows
    cpu: str
    cores: int
    threads: int  # that PyTorch used
    memory_bytes: int  # of the device


@dataclass(frozen=True)
class Results:
    """A run of the benchmarks."""

    schema: int
    date: str  # ISO 8601, UTC
    hardware: Hardware
    versions: dict[str, str]
    rows: list[Row]
    goals: list[GoalOutcome]


def goal_outcome(goal: Goal, rows: list[Row]) -> GoalOutcome | None:
    """Return what was reached of a goal, or None if its rows were not measured.

    Args:
        goal: the goal.
        rows: rows of one run.

    Returns:
        The outcome, from the medians of kpnops and eager unfold in the same turns.
    """
    ours = [row for row in rows if row.case == goal.case and row.pass_name == goal.pass_name]
    medians = {row.provider: row.median for row in ours if row.median is not None}
    if not {KPNOPS, EAGER_UNFOLD} <= medians.keys():
        return None
    reached = medians[EAGER_UNFOLD] / medians[KPNOPS]
    quiet = all((row.other_load or 0.0) <= QUIET for row in ours)
    return GoalOutcome(goal.name, goal.asked, reached, reached >= goal.asked, quiet)


def collect(rows: list[Row], device: torch.device) -> Results:
    """Return the rows with everything that says where they come from.

    Args:
        rows: what was measured.
        device: what it was measured on.

    Returns:
        The results; goals are set for the CPU only.
    """
    goals = GOALS if device.type == "cpu" else []
    outcomes = [goal_outcome(goal, rows) for goal in goals]
    return Results(
        schema=SCHEMA,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=_hardware(device),
        versions=_versions(),
        rows=rows,
        goals=[outcome for outcome in outcomes if outcome is not None],
    )


def _hardware(device: torch.device) -> Hardware:
    cpu = _cpu_model()
    if device.type == "cpu":
        name = cpu
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    return Hardware(device.type, name, cpu, os.cpu_count() or 1, torch.get_num_threads(), memory)


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "system": platform.system()}
    for package in ("kpnops", "torch", "triton", "numpy", "ddf"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # its local part tells the CPU build from CUDA's
    toolkit = torch.version.cuda or torch.version.hip
    if toolkit is not None:
        versions["toolkit"] = toolkit
    return versions


def save(results: Results, path: Path) -> None:
    """Write results as JSON; an existing file is replaced only once the new one is whole.

    Args:
        results: what to write.
        path: the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")
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
        data = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); run `pytest bench/` again") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise ValueError(
            f"{path}: expected schema {SCHEMA}, got {found}; run `pytest bench/` again"
        )
    return _parse(Results, data, str(path))


def _parse(expected: Any, data: Any, where: str) -> Any:
    """Return JSON's `data` as the annotated type, or raise ValueError naming the field."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _parse_dataclass(expected, data, where)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        (present,) = (argument for argument in arguments if argument is not type(None))
        return _parse(present, data, where)
    if origin in (list, tuple):
        if not isinstance(data, list) or (origin is tuple and len(data) != len(arguments)):
            raise ValueError(f"{where}: expected {expected}, got {data!r}")
        each = arguments if origin is tuple else arguments * len(data)
        values = zip(each, data, strict=True)
        return origin(
            _parse(type_, value, f"{where}[{index}]") for index, (type_, value) in enumerate(values)
        )
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where}: expected an object, got {data!r}")
        return {key: _parse(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    # JSON has one kind of number, and Python counts a bool among the integers.
    accepted = (int, float) if expected is float else expected
    if not isinstance(data, accepted) or (isinstance(data, bool) and expected is not bool):
        raise ValueError(f"{where}: expected {expected.__name__}, got {data!r}")
    return data


def _parse_dataclass(expected: Any, data: Any, where: str) -> Any:
    names = {field.name for field in dataclasses.fields(expected)}
    if not isinstance(data, dict) or data.keys() != names:
        found = sorted(data) if isinstance(data, dict) else data
        raise ValueError(f"{where}: expected the fields {sorted(names)}, got {found!r}")
    annotations = typing.get_type_hints(expected)
    return expected(
        **{name: _parse(annotations[name], data[name], f"{where}.{name}") for name in names}
    )
