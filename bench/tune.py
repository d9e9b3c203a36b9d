"""Sweep launch parameters on a GPU and write the launch table.

    python -m bench.tune                 what is not in the table yet, for at most 9 minutes
    python -m bench.tune --only fused    problems whose names contain this
    python -m bench.tune --again         also what is in the table
    python -m bench.tune --dry-run       the problems and how many candidates each has; needs no GPU

A candidate must compile, spill nothing at widths that are multiples of 16 and at others, and give
the heuristic's result. The heuristic is one of them, and stays unless another is faster by
`LEAST_WIN`. The table is written after each problem, so that a run can be ended at any time.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.environment import commit, driver_version, versions
from bench.results import now
from bench.tune_problems import Problem, bounds, meta_tensors, planned, problems, shapes
from kpnops._decoupled_filter.launch_table import PATH, SCHEMA, architecture_of, check_table

LEAST_WIN = 1.02
LEAST_SECONDS = 30.0  # left, or no other problem is begun


@dataclass(frozen=True)
class Choice:
    """What a sweep chose, in milliseconds; None keeps the heuristic."""

    config: Any
    milliseconds: float
    heuristic_milliseconds: float


def choose(
    heuristic: Any,
    kernel: str,
    fitting: Callable[[list[Any]], list[Any]],
    timed: Callable[[list[Any]], list[float]],
) -> Choice:
    """Sweep tiles and warps, then bounds of registers for the best of them.

    Args:
        heuristic: the parameters of `launch.py` or `launch_band.py`.
        kernel: whose values are tried.
        fitting: returns those candidates that may be used.
        timed: returns the milliseconds of each candidate, measured side by side.

    Returns:
        The fastest, or None for it where it wins less than `LEAST_WIN` in a last comparison.
    """
    best = heuristic
    for stage in (shapes(heuristic, kernel), None):
        others = fitting(bounds(best) if stage is None else stage)
        candidates = list(dict.fromkeys([heuristic, best, *others]))
        times = timed(candidates)
        best = candidates[times.index(min(times))]
    if best == heuristic:
        (alone,) = timed([heuristic])
        return Choice(None, alone, alone)
    own, other = timed([heuristic, best])
    if own / other < LEAST_WIN:
        return Choice(None, own, own)
    return Choice(best, other, own)


def changed(heuristic: Any, config: Any) -> dict[str, Any]:
    """Return the fields in which parameters differ from the heuristic's."""
    before, after = asdict(heuristic), asdict(config)
    return {name: value for name, value in after.items() if before[name] != value}


def read_table(path: Path) -> dict[str, Any]:
    """Return the table of a file, or an empty one."""
    if not path.exists():
        return {"schema": SCHEMA, "devices": {}}
    table = json.loads(path.read_text(encoding="utf-8"))
    check_table(table)
    return table


def write_table(table: dict[str, Any], path: Path) -> None:
    """Write a valid table, entries in order; a file is replaced once the new one is whole."""
    check_table(table)
    for device in table["devices"].values():
        device["entries"] = dict(sorted(device["entries"].items()))
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


@dataclass(frozen=True)
class Target:
    """The device whose parameters are swept."""

    name: str
    architecture: str
    driver: str | None


def enter(table: dict[str, Any], target: Target, key: str, heuristic: Any, choice: Choice) -> None:
    """Put a choice into the table, with where it comes from.

    Args:
        table: is changed.
        target: the device.
        key: kernel and class.
        heuristic: what the choice was compared with.
        choice: of the sweep.
    """
    device = table["devices"].setdefault(target.name, {"entries": {}})
    device.update(
        architecture=target.architecture,
        versions=versions(),
        driver=target.driver,
        date=now(),
        commit=commit(),
    )
    device["entries"][key] = {
        "heuristic": asdict(heuristic),
        "parameters": None if choice.config is None else changed(heuristic, choice.config),
        "milliseconds": choice.milliseconds,
        "heuristic_milliseconds": choice.heuristic_milliseconds,
    }


def sweep_all(
    chosen: list[Problem],
    path: Path,
    target: Target,
    left: Callable[[], float],
    sweep: Callable[[Problem], Choice],
    again: bool = False,
) -> int:
    """Sweep problems until they are done or the time is over.

    Args:
        chosen: in their order.
        path: of the table.
        target: the device.
        left: seconds until the end.
        sweep: makes the choice for a problem.
        again: whether to sweep what the table has.

    Returns:
        How many are left.
    """
    table = read_table(path)
    for number, problem in enumerate(chosen):
        _, recorder = planned(problem, meta_tensors(problem.case))
        known = table["devices"].get(target.name, {"entries": {}})["entries"]
        if recorder.key in known and not again:
            continue
        if left() < LEAST_SECONDS:
            return len(chosen) - number
        choice = sweep(problem)
        enter(table, target, recorder.key, recorder.heuristic, choice)
        write_table(table, path)
        gain = choice.heuristic_milliseconds / choice.milliseconds
        kept = "keeps the heuristic" if choice.config is None else f"{choice.config}, {gain:.2f}×"
        say(f"{problem.name}: {kept}")
    return 0


def say(text: str) -> None:
    """Print progress at once."""
    print(text, file=sys.stderr, flush=True)


def dry_run(chosen: list[Problem]) -> list[str]:
    """Return a line for each problem: its class, the heuristic, and how many candidates it has."""
    lines, total = [], 0
    for problem in chosen:
        _, recorder = planned(problem, meta_tensors(problem.case))
        count = 1 + len(shapes(recorder.heuristic, problem.kernel))
        count += len(bounds(recorder.heuristic))
        total += count
        lines.append(f"{recorder.key}: {count} candidates, heuristic {recorder.heuristic}")
    return [*lines, f"{len(chosen)} problems, {total} candidates"]


def main(arguments: list[str] | None = None) -> int:
    """Sweep what is asked for.

    Args:
        arguments: command line without the program's name; None takes the process's own.

    Returns:
        0 when it is done, 3 when some is left, 2 without a GPU.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description="see bench/tune.py")
    parser.add_argument("--dry-run", action="store_true", help="list the problems")
    parser.add_argument("--only", default="", metavar="TEXT", help="problems whose names have it")
    parser.add_argument("--again", action="store_true", help="also what the table has")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit (default 9)")
    parser.add_argument("--seconds", type=float, default=0.02, help="timing of each candidate")
    parser.add_argument("--workers", type=int, default=8, help="processes that compile")
    parser.add_argument("--table", type=Path, default=PATH, help="default: the shipped one")
    options = parser.parse_args(arguments)
    chosen = [problem for problem in problems() if options.only in problem.name]
    if options.dry_run:
        print("\n".join(dry_run(chosen)))
        return 0
    if not torch.cuda.is_available():
        say("python -m bench.tune needs a GPU; --dry-run does not")
        return 2
    from bench.tune_device import Sweeper

    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    target = Target(properties.name, architecture_of(properties), driver_version(device))
    deadline = time.monotonic() + 60 * options.minutes
    with Sweeper(device, options.seconds, options.workers) as sweeper:
        remaining = sweep_all(
            chosen,
            options.table,
            target,
            lambda: deadline - time.monotonic(),
            sweeper.sweep,
            options.again,
        )
    say(f"{remaining} problems are left; run this again" if remaining else "all done")
    return 3 if remaining else 0


if __name__ == "__main__":
    raise SystemExit(main())
