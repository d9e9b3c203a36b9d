"""Host time of a call, first calls, graphs."""

import pytest
import torch

from bench.cases import BACKWARD, FORWARD, FORWARD_BACKWARD, Case
from bench.first_call import first_call_rows, rows_of
from bench.graphs import MOST_BYTES, MOST_CALLS, calls_in_graph
from bench.host import host_durations, host_rows
from bench.matrix import EMPTY_OP, Task
from bench.results import COLD, HOST, MEASURED, SKIPPED, WARM, YARDSTICK

CPU = torch.device("cpu")
TINY = Case(1, 3, 8, 8, 3)


@pytest.mark.parametrize("pass_name", [FORWARD, FORWARD_BACKWARD])
def test_host_time_of_our_call_and_of_an_empty_one(pass_name):
    rows = host_rows(Task("calls", TINY, pass_name, HOST, ("kpnops", EMPTY_OP)), CPU)
    assert [row.provider for row in rows] == ["kpnops", EMPTY_OP]
    for row in rows:
        assert row.status == MEASURED, row
        assert 0 < row.milliseconds < 1000
        assert row.clock == HOST
    assert rows[1].role == YARDSTICK


def test_host_time_is_the_mean_of_each_batch(monkeypatch):
    times = iter([0.0, 5.0, 10.0, 25.0])
    monkeypatch.setattr("bench.host.time.perf_counter", lambda: next(times))
    made = []
    assert host_durations(lambda: made.append(1) or (), CPU, batches=2, calls=5) == [1.0, 3.0]
    assert len(made) == 50 + 2 * 5


def test_first_calls_need_a_gpu():
    (row,) = first_call_rows(Task("calls", TINY, FORWARD, COLD, ("kpnops",)), CPU)
    assert row.status == SKIPPED
    assert row.reason == "nothing is compiled on a CPU"


def test_first_calls_name_kernels_where_nothing_was_compiled():
    took = {
        FORWARD: {"kpnops": 1.5, "_tile_fwd_kernel": 1.25},
        BACKWARD: {"kpnops": 2.0, "_fused_bwd_kernel": 1.75},
    }
    cold = rows_of(TINY, COLD, took)
    assert [(row.pass_name, row.provider, row.milliseconds) for row in cold] == [
        (FORWARD, "kpnops", 1500.0),
        (FORWARD, "_tile_fwd_kernel", 1250.0),
        (BACKWARD, "kpnops", 2000.0),
        (BACKWARD, "_fused_bwd_kernel", 1750.0),
    ]
    warm = rows_of(TINY, WARM, took)
    assert [row.provider for row in warm] == ["kpnops", "kpnops"]


@pytest.mark.gpu
def test_first_calls_on_a_gpu():
    task = Task("calls", Case(1, 3, 64, 64, 3), FORWARD, COLD, ("kpnops",))
    rows = first_call_rows(task, torch.device("cuda"))
    assert {row.status for row in rows} == {MEASURED}, rows
    assert {row.pass_name for row in rows} == {FORWARD, BACKWARD}
    whole = {(row.pass_name, row.clock): row for row in rows if row.provider == "kpnops"}
    for pass_name in (FORWARD, BACKWARD):
        cold, warm = (whole[pass_name, clock].milliseconds for clock in (COLD, WARM))
        assert 0 < warm < cold
    assert any(row.provider.startswith("_") for row in rows)


@pytest.mark.parametrize(
    ("rotation", "result_bytes", "expected"),
    [
        (1, 1, MOST_CALLS),
        (5, 1, 20),
        (100, 1, 100),
        (2, MOST_BYTES // 5, 4),
        (3, MOST_BYTES, 3),
    ],
)
def test_graphs_hold_whole_rotations(rotation, result_bytes, expected):
    assert calls_in_graph(rotation, result_bytes) == expected
