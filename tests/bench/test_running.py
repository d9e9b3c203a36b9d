"""Running tasks: resumed where they stopped; a crash costs one row."""

import time
from dataclasses import replace

import pytest

from bench.cases import FORWARD, Case
from bench.environment import source_digest
from bench.matrix import Task
from bench.pool import WorkerDiedError
from bench.results import FAILED, WALL, load, row_to_json
from bench.running import Run, generate_code, is_done, measure, pending, run_matrix
from bench.worker import task_from_json, task_to_json
from tests.bench.rows import measured, run

CASE = Case(1, 3, 16, 20, 3)
TASK = Task("goals", CASE, FORWARD, WALL, ("kpnops", "eager_slices", "eager_unfold"))
OTHER = replace(TASK, case=replace(CASE, kernel_size=5))


class FakeWorker:
    """Measures at once, but for the providers that it is told to fail at."""

    def __init__(self, deaths=()):
        self.deaths = dict(deaths)  # provider: error
        self.asked = []

    def ask(self, request, limit):
        task = task_from_json(request["task"])
        self.asked.append(task.providers)
        for provider in (*task.providers, ""):
            if provider in self.deaths:
                raise self.deaths[provider]
        rows = [
            measured(name, 2.0, task.case, task.pass_name, source=source_digest())
            for name in task.providers
        ]
        return {"rows": [row_to_json(row) | {"quartiles": list(row.quartiles)} for row in rows]}


def run_with(worker, tmp_path, seconds=100.0):
    path = tmp_path / "local.json"
    return Run(path, run([]), time.monotonic() + seconds, "cpu", worker, 0)


@pytest.fixture(autouse=True)
def plain_cases(monkeypatch):
    """Cases come back from a real process through JSON, without tuples."""
    from bench import running

    def read(data):
        data["case"]["shape"] = list(data["case"]["shape"])
        return from_json(data)

    from_json = running.row_from_json
    monkeypatch.setattr(running, "row_from_json", read)


def statuses(rows):
    return {row.provider: row.status for row in rows}


def test_tasks_survive_the_way_to_the_worker():
    assert task_from_json(task_to_json(TASK)) == TASK


def test_all_rows_are_measured(tmp_path):
    rows = measure(TASK, run_with(FakeWorker(), tmp_path))
    assert statuses(rows) == dict.fromkeys(TASK.providers, "measured")


def test_a_crash_costs_the_row_of_its_provider(tmp_path):
    worker = FakeWorker({"eager_slices": WorkerDiedError("illegal access", "eager_slices", False)})
    rows = measure(TASK, run_with(worker, tmp_path))
    assert statuses(rows) == {
        "eager_slices": FAILED,
        "kpnops": "measured",
        "eager_unfold": "measured",
    }
    assert rows[0].reason == "illegal access"
    assert worker.asked == [TASK.providers, ("kpnops", "eager_unfold")]


def test_a_crash_while_all_are_timed_fails_them_all(tmp_path):
    worker = FakeWorker({"": WorkerDiedError("illegal access", "", False)})
    rows = measure(TASK, run_with(worker, tmp_path))
    assert statuses(rows) == dict.fromkeys(TASK.providers, FAILED)


def test_what_the_deadline_ends_is_not_recorded(tmp_path):
    worker = FakeWorker({"kpnops": WorkerDiedError("took over 3 s", "kpnops", True)})
    assert measure(TASK, run_with(worker, tmp_path, seconds=0.0)) is None
    rows = measure(TASK, run_with(worker, tmp_path))  # with time left it was the provider's fault
    assert statuses(rows)["kpnops"] == FAILED


def test_providers_whose_code_took_too_long_are_not_asked(tmp_path):
    worker = FakeWorker()
    going = run_with(worker, tmp_path)
    going.failures[TASK, "eager_unfold"] = "the first call took over 60 s"
    rows = measure(TASK, going)
    assert statuses(rows)["eager_unfold"] == FAILED
    assert worker.asked == [("kpnops", "eager_slices")]


def test_every_task_is_saved_and_the_next_run_goes_on(tmp_path):
    first = run_with(FakeWorker(), tmp_path)
    assert run_matrix([TASK], first, lambda text: None) == 0
    rows = load(first.path).rows
    assert len(rows) == len(TASK.providers)
    assert pending([TASK, OTHER], rows, again=False) == [OTHER]
    assert pending([TASK, OTHER], rows, again=True) == [TASK, OTHER]


def test_nothing_is_begun_shortly_before_the_end(tmp_path):
    worker = FakeWorker()
    assert run_matrix([TASK, OTHER], run_with(worker, tmp_path, 1.0), lambda text: None) == 2
    assert worker.asked == []


def test_a_task_is_done_when_all_its_rows_are_of_these_sources():
    rows = {
        row.key: row for row in (measured(name, 1.0, CASE, source="now") for name in TASK.providers)
    }
    assert is_done(TASK, rows, "now")
    assert not is_done(TASK, rows, "later")
    assert not is_done(OTHER, rows, "now")
    del rows[CASE, FORWARD, WALL, "kpnops"]
    assert not is_done(TASK, rows, "now")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"seconds": 3.0}, None),
        ({"seconds": None}, None),
        ({"seconds": 61.0}, "the first call took 61 s, over 60 s"),
        (WorkerDiedError("took over 90 s", "", True), "the first call took over 60 s"),
        (WorkerDiedError("the process ended", "", False), None),
    ],
)
def test_code_that_takes_too_long_is_taken_down(answer, expected, tmp_path, monkeypatch):
    asked = []

    class Compiler:
        def __init__(self, *arguments):
            pass

        def ask(self, request, limit):
            asked.append(request["task"]["providers"])
            if isinstance(answer, Exception):
                raise answer
            return answer

        def stop(self):
            pass

    monkeypatch.setattr("bench.running.Worker", Compiler)
    going = run_with(None, tmp_path)
    going.compile_workers = 2
    task = replace(TASK, providers=("kpnops", "compiled_unfold", "eager_unfold"))
    generate_code([task], going)
    assert sorted(asked) == [("compiled_unfold",), ("kpnops",)]
    wanted = {} if expected is None else dict.fromkeys([(task, p) for (p,) in asked], expected)
    assert going.failures == wanted
