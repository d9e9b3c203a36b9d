"""Runs the tests marked gpu within a time limit, and goes on where the last run stopped.

This module is also the plugin that writes each test's outcome to a file as soon as it is known.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.environment import ROOT, source_digest
from bench.results import GpuTests, now

OUTCOMES = "KPNOPS_TEST_OUTCOMES"
DONE = "KPNOPS_TESTS_DONE"
MOST_FAILURES = 20
# Compiling kernels takes most of the time, and that is the CPU's.
MOST_WORKERS = 8
FOLDERS = ("tests/kpnops", "tests/bench")


class _Outcomes:
    """Appends one JSON line for each test, in the process that hears of all."""

    def __init__(self, path: str):
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._append(report.nodeid, report.outcome, report.duration)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._append(report.nodeid, "failed", 0.0)

    def _append(self, name: str, outcome: str, seconds: float) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps([name, outcome, seconds]) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get(OUTCOMES)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Outcomes(path))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = os.environ.get(DONE)
    if path:
        done = set(json.loads(Path(path).read_text(encoding="utf-8")))
        items[:] = [item for item in items if item.nodeid not in done]


def run_tests(
    state: Path, seconds: float, again: bool = False, extra: list[str] | None = None
) -> GpuTests:
    """Run those tests that have no outcome yet for these sources, until the time is over.

    Args:
        state: file of the outcomes so far, which the next run goes on from.
        seconds: time limit.
        again: whether to forget the outcomes so far.
        extra: arguments for pytest instead of the folders and the marker.

    Returns:
        What all runs for these sources said together.
    """
    # Failed ones run again: a kernel that breaks the device takes its neighbours along.
    kept = [] if again else [line for line in _outcomes(state) if line[1] != "failed"]
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text("".join(json.dumps(line) + "\n" for line in [[source_digest()], *kept]))
    done = state.with_name(state.name + ".done")
    done.write_text(json.dumps([name for name, *_ in kept]))
    start = time.monotonic()
    environment = os.environ | {OUTCOMES: str(state), DONE: str(done)}
    environment.setdefault("OMP_NUM_THREADS", "2")  # many processes share the cores
    process = subprocess.Popen(
        _command(extra or ["-m", "gpu", *FOLDERS]),
        cwd=ROOT,
        env=environment,
        stdout=sys.stderr,
        start_new_session=True,
    )
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        _end(process)
    done.unlink(missing_ok=True)
    # 0: passed, 1: some failed, 5: nothing was left to run; anything else is no complete run.
    return summary(_outcomes(state), status in (0, 1, 5), time.monotonic() - start)


def _command(arguments: list[str]) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu_tests", "--tb=short"]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    # Other versions deprecate other things: no reason to lose the tests of a GPU.
    command += ["-W", "default"]
    if importlib.util.find_spec("xdist"):
        workers = min(MOST_WORKERS, os.cpu_count() or 1)
        command += ["-n", str(workers), "--dist", "worksteal"]
    return command + arguments


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcomes(state: Path) -> list[list[Any]]:
    """Return [name, outcome, seconds] of each test, if they are of these sources."""
    if not state.exists():
        return []
    first, *lines = [json.loads(line) for line in state.read_text().splitlines()]
    return lines if first == [source_digest()] else []


def summary(outcomes: list[list[Any]], complete: bool, seconds: float) -> GpuTests:
    """Return the outcomes as the header of the results has them.

    Args:
        outcomes: [name, outcome, seconds] of each test; the last one of a name counts.
        complete: whether no test is left.
        seconds: what the run took.

    Returns:
        Numbers, and the names of some that failed.
    """
    last = {name: outcome for name, outcome, _ in outcomes}
    failures = [name for name, outcome in last.items() if outcome == "failed"]
    counts = {kind: list(last.values()).count(kind) for kind in ("passed", "failed", "skipped")}
    return GpuTests(
        source_digest(),
        now(),
        complete,
        counts["passed"],
        counts["failed"],
        counts["skipped"],
        round(seconds, 1),
        failures[:MOST_FAILURES],
    )
