"""Runs tasks in worker processes until they are done or the time is over."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.environment import source_digest
from bench.matrix import Task
from bench.pool import Worker, WorkerDiedError
from bench.results import (
    COLD,
    FAILED,
    HOST,
    OWN,
    YARDSTICK,
    Results,
    Row,
    merge,
    row_from_json,
    save,
    stamped,
)
from bench.worker import task_to_json
from bench.workloads import BY_NAME

# A provider whose first call takes longer is listed as such.
COMPILE_LIMIT = 60.0
# Beside the first calls: tensors, the oracle, checks and timing.
TASK_LIMIT = 120.0
# Tasks whose code is generated side by side before they are measured one by one: many, because the
# processes that do it are started anew for each chunk.
CHUNK = 36
LEAST_SECONDS = 15.0  # left, or nothing new is begun


@dataclass
class Run:
    """One run of this program: what it was asked, and what it has so far."""

    path: Path
    results: Results
    deadline: float
    device: str
    worker: Worker
    compile_workers: int
    failures: dict[tuple[Task, str], str] = field(default_factory=dict)  # in code generation

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def save(self, rows: list[Row]) -> None:
        """Merge new rows into the file."""
        self.results = replace(self.results, rows=merge(self.results.rows, rows))
        save(self.results, self.path)


def say(text: str) -> None:
    """Print progress at once."""
    print(text, file=sys.stderr, flush=True)


def is_done(task: Task, rows: dict[Any, Row], source: str) -> bool:
    """Whether all rows of a task are in the file, measured from these sources.

    Args:
        task: the task.
        rows: the file's rows by their keys.
        source: digest of the sources.

    Returns:
        False too where one row is missing.
    """
    for provider in task.providers:
        row = rows.get((task.case, task.pass_name, task.clock, provider))
        if row is None or row.source != source:
            return False
    return True


def pending(tasks: list[Task], rows: list[Row], again: bool) -> list[Task]:
    """Return the tasks that are left to do.

    Args:
        tasks: all that were asked for.
        rows: of the file.
        again: whether to do all.

    Returns:
        Those not done, in the same order.
    """
    by_key = {row.key: row for row in rows}
    return [task for task in tasks if again or not is_done(task, by_key, source_digest())]


def failed_rows(task: Task, providers: list[str], reason: str) -> list[Row]:
    """Return rows that say why these providers of a task were not measured."""
    return [
        stamped(
            Row(
                task.case,
                task.pass_name,
                task.clock,
                provider,
                BY_NAME[provider].role if provider in BY_NAME else YARDSTICK,
                FAILED,
                reason,
            )
        )
        for provider in providers
    ]


def measure(task: Task, run: Run) -> list[Row] | None:
    """Measure a task, without those providers that end the process.

    Args:
        task: what to measure.
        run: gives the worker and the time.

    Returns:
        A row for each provider, or None where the run's time was over first.
    """
    rows: list[Row] = []
    providers = []
    for provider in task.providers:
        reason = run.failures.get((task, provider))
        if reason is None:
            providers.append(provider)
        else:
            rows += failed_rows(task, [provider], reason)
    while providers:
        compiled = sum("compiled" in provider for provider in providers)
        wanted = TASK_LIMIT + COMPILE_LIMIT * compiled
        request = {
            "do": "measure",
            "task": task_to_json(replace(task, providers=tuple(providers))),
        }
        try:
            reply = run.worker.ask(request, min(wanted, run.left()))
        except WorkerDiedError as error:
            if error.late and run.left() < 1:
                return None
            at_fault = [error.provider] if error.provider else providers
            rows += failed_rows(task, at_fault, error.reason)
            providers = [provider for provider in providers if provider not in at_fault]
            continue
        if "error" in reply:
            return rows + failed_rows(task, providers, reply["error"])
        return rows + [row_from_json(row) for row in reply["rows"]]
    return rows


def generate_code(tasks: list[Task], run: Run) -> None:
    """Make the first calls of all providers that generate code, many processes at a time.

    The compilers keep what they made on disk, where the measuring process finds it.

    Args:
        tasks: what is measured next.
        run: takes down who failed.
    """
    jobs = [
        (task, provider)
        for task in tasks
        if task.clock not in (HOST, COLD)
        for provider in task.providers
        if "compiled" in provider or BY_NAME[provider].role == OWN
    ]
    if not jobs or run.compile_workers < 1:
        return
    say(f"generating code for {len(jobs)} first calls")
    waiting = iter(jobs)

    def work(_: int) -> None:
        # One thread each: the processes share the cores among themselves.
        worker = Worker(run.device, 0.0, {"TORCHINDUCTOR_COMPILE_THREADS": "1"})
        try:
            # next() of one iterator is safe here: the interpreter's lock covers it.
            while run.left() > LEAST_SECONDS and (job := next(waiting, None)) is not None:
                reason = _first_call_failure(*job, worker, run)
                if reason is not None:
                    run.failures[job] = reason
        finally:
            worker.stop()

    with ThreadPoolExecutor(run.compile_workers) as threads:
        list(threads.map(work, range(min(run.compile_workers, len(jobs)))))


def _first_call_failure(task: Task, provider: str, worker: Worker, run: Run) -> str | None:
    request = {"do": "compile", "task": task_to_json(replace(task, providers=(provider,)))}
    limit = COMPILE_LIMIT + 30  # the process and the compiler start within it too
    try:
        reply = worker.ask(request, min(limit, run.left()))
    except WorkerDiedError as error:
        if not error.late:
            return None  # measuring it will tell
        return None if run.left() < 1 else f"the first call took over {COMPILE_LIMIT:.0f} s"
    seconds = reply.get("seconds")
    if seconds is not None and seconds > COMPILE_LIMIT:
        return f"the first call took {seconds:.0f} s, over {COMPILE_LIMIT:.0f} s"
    return None


def run_matrix(tasks: list[Task], run: Run, progress: Callable[[str], object] = say) -> int:
    """Measure tasks until they are done or the time is over.

    Args:
        tasks: in the order of measuring.
        run: where results go.
        progress: is told what was measured.

    Returns:
        How many tasks are left.
    """
    left = list(tasks)
    while left and run.left() > LEAST_SECONDS:
        chunk = left[:CHUNK]
        if run.device != "cpu":
            generate_code(chunk, run)
        for task in chunk:
            if run.left() < LEAST_SECONDS:
                break
            start = time.monotonic()
            rows = measure(task, run)
            if rows is None:
                break
            run.save(rows)
            left.remove(task)
            progress(f"{task.name}: {time.monotonic() - start:.1f} s, {_line(rows)}")
    return len(left)


def _line(rows: list[Row]) -> str:
    cells = []
    for row in rows:
        if row.milliseconds is None:
            cells.append(f"{row.provider} {row.status}")
        else:
            share = "" if row.fraction_of_copy is None else f" ({100 * row.fraction_of_copy:.0f} %)"
            cells.append(f"{row.provider} {row.milliseconds:.3g} ms{share}")
    return "; ".join(cells)
