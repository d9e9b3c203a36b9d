import math
import sys
import time

import numpy as np
import pytest
import torch

from dkpn import resources
from dkpn.resources import measured

MEBIBYTE = 2**20
SLACK = 8.0  # MiB: of the interpreter and the allocator, far below what the tests take

told = pytest.mark.skipif(
    math.isnan(measured(lambda: None)[1].memory),
    reason=f"{sys.platform} does not tell the peak of resident memory",
)


def fill(mebibytes: int) -> float:
    return float(np.ones(mebibytes * MEBIBYTE // 8).sum())


def test_the_result_and_the_time_come_back():
    start = time.perf_counter()
    result, cost = measured(lambda: time.sleep(0.05) or "done")
    assert result == "done"
    assert 0.05 <= cost.seconds <= time.perf_counter() - start


@told
def test_memory_is_the_peak_of_the_call_alone():
    fill(160)  # a peak before it does not count
    assert measured(lambda: None)[1].memory < SLACK
    assert measured(lambda: fill(64))[1].memory == pytest.approx(64, abs=SLACK)
    tensor = measured(lambda: torch.ones(64 * MEBIBYTE // 4))[1]
    assert tensor.memory == pytest.approx(64, abs=SLACK)


@told
def test_memory_that_the_process_keeps_for_later_calls_counts_for_each():
    fill(30)  # from now on glibc keeps up to twice as much when it is freed
    for _ in range(3):
        assert measured(lambda: fill(20))[1].memory == pytest.approx(20, abs=SLACK)


@pytest.mark.parametrize("missing", ["_CLEAR", "_STATUS"])
def test_where_memory_is_not_told_there_is_no_number(monkeypatch, tmp_path, missing):
    monkeypatch.setattr(resources, missing, tmp_path / "no" / "such")
    cost = measured(lambda: None)[1]
    assert math.isnan(cost.memory)
    assert cost.seconds >= 0


@pytest.mark.gpu
def test_memory_of_the_gpu_is_counted():
    torch.ones(MEBIBYTE, device="cuda")
    _, cost = measured(lambda: torch.ones(16 * MEBIBYTE, device="cuda").sum().item())
    assert cost.device_memory == pytest.approx(64, abs=1)


def test_without_a_gpu_there_is_no_memory_of_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert math.isnan(measured(lambda: None)[1].device_memory)


def test_available_memory_is_told_or_not_a_number(tmp_path, monkeypatch):
    table = tmp_path / "meminfo"
    monkeypatch.setattr(resources, "_MEMORY", table)
    assert math.isnan(resources.available_memory())
    table.write_text("MemTotal:  9000 kB\nMemAvailable:    3000 kB\n")
    assert resources.available_memory() == 3000 * 1024
    table.write_text("MemTotal:  9000 kB\n")
    assert math.isnan(resources.available_memory())
