"""GPU tests, then the benchmark matrix, into one file named after the device.

    python -m bench.gpu                    what is not done yet, for at most 9 minutes
    python -m bench.gpu --part tests       the tests marked gpu alone
    python -m bench.gpu --part goals       one part of the matrix; --list names them
    python -m bench.gpu --only K5-pixel    tasks whose names contain this
    python -m bench.gpu --again            measure again what is in the file
    python -m bench.gpu --tiny             images of a few pixels, to try the machinery
    python -m bench.gpu --tiny --device cpu    the same without a GPU

Needs PYTHONPATH or the working directory at the repository's root, and installs nothing. A task
that was measured from the same sources is not measured again. Every task is saved when it is done,
so that a run can be ended at any time.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from bench.environment import source_digest
from bench.gpu_tests import run_tests
from bench.matrix import PARTS, Task, gpu_tasks, tiny_tasks
from bench.pool import Worker, WorkerDiedError
from bench.results import Header
from bench.running import LEAST_SECONDS, Run, pending, run_matrix, say
from bench.schema import parse
from bench.session import open_results

RESULTS_FOLDER = Path(__file__).parent / "results"
TESTS = "tests"
START_LIMIT = 120.0  # seconds for a process that measures


def chosen_tasks(options: argparse.Namespace) -> list[Task]:
    """Return the tasks that the command line asks for."""
    tasks = tiny_tasks(options.device == "cpu") if options.tiny else gpu_tasks()
    if options.part not in (None, TESTS):
        tasks = [task for task in tasks if task.part == options.part]
    if options.only:
        tasks = [task for task in tasks if options.only in task.name]
    if options.providers:
        wanted = options.providers.split(",")
        tasks = [
            replace(task, providers=tuple(p for p in task.providers if p in wanted))
            for task in tasks
        ]
    return [task for task in tasks if task.providers]


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="see bench/gpu.py")
    parser.add_argument("--part", choices=[TESTS, *PARTS], help="default: what is not done yet")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit (default 9)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="images of a few pixels")
    parser.add_argument("--again", action="store_true", help="measure what is done, too")
    parser.add_argument("--only", metavar="TEXT", help="tasks whose names contain it")
    parser.add_argument("--providers", metavar="NAMES", help="these alone, separated by commas")
    parser.add_argument("--seconds", type=float, default=0.2, help="timing for each provider")
    parser.add_argument("--compile-workers", type=int, default=6, help="processes; 0: none")
    parser.add_argument("--results", type=Path, help="file (default: named after the device)")
    parser.add_argument("--no-report", action="store_true", help="write the JSON file alone")
    parser.add_argument("--list", action="store_true", help="print the tasks and end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for.

    Args:
        arguments: command line without the program's name; None takes the process's own.

    Returns:
        0 when everything asked for is done, 3 when some is left, 1 when tests failed.
    """
    options = options_of(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    tasks = chosen_tasks(options)
    if options.list:
        print("\n".join(task.name for task in tasks))
        return 0
    worker = Worker(options.device, options.seconds)
    try:
        reply = worker.ask({"do": "header"}, START_LIMIT)
        if "error" in reply:
            say(f"{options.device}: {reply['error']}")
            return 2
        header = parse(Header, reply["header"], "header")
        name = f"local-tiny-{header.device}" if options.tiny else header.device
        path = options.results or RESULTS_FOLDER / f"{name}.json"
        results = open_results(path, header)
        run = Run(path, results, deadline, options.device, worker, options.compile_workers)
        if options.part == TESTS or (options.part is None and not options.only):
            _run_tests(run, options)
        left = 0
        if options.part != TESTS:
            todo = pending(tasks, run.results.rows, options.again)
            say(f"{len(todo)} of {len(tasks)} tasks are to be measured, into {path}")
            left = run_matrix(todo, run)
    except WorkerDiedError as error:
        say(f"{options.device} cannot be used: {error.reason}")
        return 2
    finally:
        worker.stop()
    return _finish(run, left, options)


def _run_tests(run: Run, options: argparse.Namespace) -> None:
    tests = run.results.header.tests
    done = tests is not None and tests.complete and tests.source == source_digest()
    if done and not options.again:
        return
    say("tests marked gpu")
    state = run.path.with_name(f"local-tests-{run.path.stem}.jsonl")
    extra = ["tests/bench/test_text.py"] if options.tiny else None  # on a CPU
    tests = run_tests(state, max(1.0, run.left() - LEAST_SECONDS), options.again, extra)
    run.results = replace(run.results, header=replace(run.results.header, tests=tests))
    run.save([])
    state_text = "all of them" if tests.complete else "not all of them: run this part again"
    say(f"passed {tests.passed}, failed {tests.failed}, skipped {tests.skipped}; {state_text}")


def _finish(run: Run, left: int, options: argparse.Namespace) -> int:
    if not options.no_report and run.results.rows:
        from bench.report import write_report

        for path in write_report(run.results, run.path):
            say(f"wrote {path}")
    tests = run.results.header.tests
    asked = options.part in (None, TESTS) and not options.only
    untested = asked and tests is not None and not tests.complete
    if left or untested:
        say(
            f"{left} tasks are left{' and some tests' if untested else ''}; run this again to go on"
        )
        return 3
    say("everything that was asked for is done")
    return 1 if tests is not None and tests.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
