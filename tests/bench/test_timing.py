"""Clocks and meters."""

import time

import pytest
import torch

from bench import timing
from bench.cases import BACKWARD, Case, make_tensors
from bench.graphs import GraphCall
from bench.operations import OperationCall, slices_operation
from bench.replay import ReplayClock
from bench.timing import (
    TURNS,
    OtherLoad,
    cache_bytes,
    free_memory,
    kept_bytes,
    peak_bytes,
    rotation_length,
    time_in_turns,
    wall_time,
)

CPU = torch.device("cpu")
MEBIBYTE = 2**20


def mebibytes(count):
    return torch.empty(count * MEBIBYTE, dtype=torch.uint8)


def allocate_and_keep_one():
    kept = mebibytes(4)
    freed = mebibytes(8)
    del freed
    again = mebibytes(2)
    del again
    return kept


@torch.library.custom_op("bench_tests::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    scratch = mebibytes(16)
    del scratch
    return x.clone()


def test_peak_counts_what_lives_at_once():
    assert peak_bytes(allocate_and_keep_one, CPU) == 12 * MEBIBYTE
    assert kept_bytes(allocate_and_keep_one, CPU) == 4 * MEBIBYTE


def test_peak_sees_into_opaque_operators():
    x = mebibytes(1)
    peak = peak_bytes(lambda: opaque(x), CPU)
    assert 16 * MEBIBYTE <= peak <= 17 * MEBIBYTE
    assert kept_bytes(lambda: opaque(x), CPU) == MEBIBYTE


def test_peak_sees_the_backward():
    x = torch.ones(MEBIBYTE // 4, requires_grad=True)

    def square_and_differentiate():
        return torch.autograd.grad((x * x).sum(), x)

    # The square, its expanded gradient times x twice, their sum: at least two of 1 MiB at once.
    assert peak_bytes(square_and_differentiate, CPU) >= 2 * MEBIBYTE
    assert kept_bytes(lambda: x.exp(), CPU) == MEBIBYTE


def test_a_call_that_allocates_nothing_has_no_peak():
    assert peak_bytes(lambda: None, CPU) == 0
    assert kept_bytes(lambda: None, CPU) == 0


def test_wall_time_covers_the_call():
    assert wall_time(lambda: time.sleep(0.02) or ()) >= 0.02


def test_providers_take_turns_on_rotating_inputs():
    log = []

    def call(name, index):
        return lambda: log.append((name, index)) or ()

    def clock(function):
        function()
        return {"fast": 1e-3, "slow": 5e-2}[log[-1][0]]

    calls = {name: [call(name, index) for index in range(3)] for name in ("fast", "slow")}
    durations = time_in_turns(calls, clock, seconds=TURNS * 4e-3)
    assert durations == {"fast": [1e-3] * 4 * TURNS, "slow": [5e-2] * TURNS}
    timed = log[4:]  # after two calls of each to learn how long they take
    names = [name for name, _ in timed]
    assert names == (["fast"] * 4 + ["slow"]) * TURNS
    indices = [index for name, index in timed if name == "fast"]
    assert indices == [number % 3 for number in range(4 * TURNS)]


def test_a_graph_of_many_calls_is_replayed_less_often():
    replays = []
    graph = GraphCall.__new__(GraphCall)  # capturing needs a GPU
    graph.calls = 20

    def clock(call):
        assert call is graph
        replays.append(call)
        return 1e-3  # of one of its calls

    (durations,) = time_in_turns({"graph": [graph]}, clock, seconds=TURNS * 0.1).values()
    assert durations == [1e-3] * 5 * TURNS


def test_the_forward_of_a_backward_is_made_before_the_clock_starts():
    made = []

    class Recorded(OperationCall):
        def forward(self):
            made.append("forward")
            return super().forward()

    case = Case(1, 3, 8, 8, 3)
    call = Recorded(slices_operation(case), BACKWARD, make_tensors(case, CPU))

    def clock(call):
        made.append("clock")
        return wall_time(call)

    time_in_turns({"a": [call]}, clock, seconds=0.0)
    timed = made[-2 * TURNS :]
    assert timed == ["clock", "forward"] * TURNS  # the last one made for a next turn


@pytest.mark.parametrize(
    ("set_bytes", "cache", "free", "expected"),
    [
        (10, 100, 10**6, 21),  # 21 sets of 10 exceed 200
        (1000, 100, 10**6, 2),  # one set exceeds the cache, but would be found in it in part
        (1000, 10**6, 40_000, 10),  # a quarter of the memory
        (1000, 10**6, 100, 1),
    ],
)
def test_rotation_exceeds_twice_the_cache_within_the_memory(set_bytes, cache, free, expected):
    assert rotation_length(set_bytes, cache, free) == expected


def test_machine_is_described():
    assert 64 * 1024 <= cache_bytes(CPU) <= 4 * 2**30
    assert free_memory(CPU) > 0


def test_container_limit_counts(monkeypatch):
    monkeypatch.setattr(timing, "_available_memory", lambda: 8 * MEBIBYTE)
    monkeypatch.setattr(timing, "_control_group_memory", lambda: 3 * MEBIBYTE)
    assert free_memory(CPU) == 3 * MEBIBYTE


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([(10.0, 100.0), (14.0, 106.0)], 1.5),
        ([(10.0, 100.0), (14.0, 99.9)], 0.0),  # clocks of different grain
        ([None, None], None),
    ],
)
def test_other_load_is_busy_time_over_wall_time(readings, expected, monkeypatch):
    values = iter(readings)
    monkeypatch.setattr(OtherLoad, "_readings", staticmethod(lambda: next(values)))
    assert OtherLoad().cores() == expected


def test_busy_time_of_the_system_contains_this_process():
    before, start = OtherLoad._readings(), time.process_time()
    if before is None:
        pytest.skip("this system does not tell how busy it is")
    while time.process_time() - start < 0.3:
        pass
    after, own = OtherLoad._readings(), time.process_time() - start
    assert after is not None
    # The system counts in hundredths of a second, each of six kinds of time on its own.
    assert after[1] - before[1] + own >= 0.3 - 6 * 0.01


def test_replayed_durations_are_exact():
    durations = [0.1, 1e-7, 123456.789]
    clock = ReplayClock(durations)
    assert [-clock() + clock() for _ in durations] == durations
