"""Processes that measure: replies, deaths, time limits, new starts."""

import sys

import pytest

from bench.pool import Worker, WorkerDiedError

# Does what the request says; counts its requests, so that a new process shows.
FAKE = """
import json, sys, time
count = 0
for line in sys.stdin:
    request = json.loads(line)
    count += 1
    for name in request.get("progress", []):
        print(json.dumps({"progress": name}), flush=True)
    if request.get("lost"):
        print(json.dumps({"lost": request["lost"]}), flush=True)
    if "exit" in request:
        sys.stderr.write("a message\\nthe last word\\n")
        sys.exit(request["exit"])
    time.sleep(request.get("sleep", 0))
    print(json.dumps({"count": count}), flush=True)
"""


@pytest.fixture
def worker():
    worker = Worker("cpu", 0.0)
    worker._command = [sys.executable, "-c", FAKE]
    yield worker
    worker.stop()


def test_one_process_answers_all_requests(worker):
    assert worker.ask({}, 30) == {"count": 1}
    assert worker.ask({"progress": ["a", ""]}, 30) == {"count": 2}


def test_death_names_whose_turn_it_was_and_the_next_request_starts_anew(worker):
    worker.ask({}, 30)
    with pytest.raises(WorkerDiedError) as caught:
        worker.ask({"progress": ["a", "b"], "exit": 9}, 30)
    assert caught.value.provider == "b"
    assert caught.value.reason == "the process ended with status 9: the last word"
    assert not caught.value.late
    assert worker.ask({}, 30) == {"count": 1}


def test_a_lost_device_is_a_death(worker):
    with pytest.raises(WorkerDiedError, match="illegal memory access") as caught:
        worker.ask({"progress": ["a"], "lost": "CUDA error: an illegal memory access"}, 30)
    assert caught.value.provider == "a"
    assert worker.ask({}, 30) == {"count": 1}


def test_what_takes_too_long_is_ended(worker):
    with pytest.raises(WorkerDiedError, match="took over 1 s") as caught:
        worker.ask({"progress": ["a"], "sleep": 60}, 1)
    assert caught.value.late
    assert worker.ask({}, 30) == {"count": 1}


def test_stopping_twice_is_stopping_once(worker):
    worker.ask({}, 30)
    worker.stop()
    worker.stop()
