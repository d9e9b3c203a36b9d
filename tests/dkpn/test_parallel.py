"""Two processes on a CPU (gloo) train as one does with the same batch."""

import os
import signal
import time

import pytest

from dkpn.checkpoint import latest_checkpoint
from dkpn.parallel import Processes, joined_processes
from dkpn.train import train
from tests.dkpn.training_runs import (
    SAME_CURVE,
    curve,
    end,
    rows,
    start_together,
    tiny_config,
    tiny_pairs,
    tiny_scenes,
    tiny_validation,
    weights,
)


def alone(run, out):
    scenes = tiny_scenes()
    train(run, tiny_pairs(scenes, run), tiny_validation(scenes), out, quiet=True)
    return out


def together(run, out):
    processes = start_together(run, out, 2)
    for process in processes:
        process.join(120)
        end(process)
    return [process.exitcode for process in processes]


def test_two_processes_give_the_curve_of_one_with_the_same_batch(tmp_path):
    run = tiny_config(batch_size=4, accumulate=2, checkpoint_every=1)
    assert together(run, tmp_path / "two") == [0, 0]
    one = alone(run, tmp_path / "one")
    assert curve(tmp_path / "two") == pytest.approx(curve(one), rel=SAME_CURVE)
    half = alone(tiny_config(batch_size=2, checkpoint_every=1), tmp_path / "half")
    assert curve(half) != pytest.approx(curve(one), rel=100 * SAME_CURVE)


def test_a_signal_to_one_process_stops_all_and_they_go_on_together(tmp_path):
    run = tiny_config(batch_size=2, iterations=100_000, checkpoint_every=2, validate_every=100_000)
    for count in (2, 1):  # the number of processes is no choice of the run
        before = latest_checkpoint(tmp_path / "checkpoints")
        processes = start_together(run, tmp_path, count)
        try:
            deadline = time.monotonic() + 120
            while latest_checkpoint(tmp_path / "checkpoints") == before:
                assert all(process.is_alive() for process in processes)
                assert time.monotonic() < deadline, "no checkpoint within two minutes"
                time.sleep(0.05)
            os.kill(processes[-1].pid, signal.SIGTERM)  # not to the one that writes
            for process in processes:
                process.join(120)
        finally:
            for process in processes:
                end(process)
        assert [process.exitcode for process in processes] == [128 + signal.SIGTERM] * count
    # One run, in which no iteration is missing or twice, though it has been stopped.
    iterations = [int(row["iteration"]) for row in rows(tmp_path, "train")]
    assert iterations == sorted(set(iterations))
    assert len(weights(tmp_path)) > 0


def test_a_batch_that_cannot_be_shared_equally_is_refused(tmp_path):
    run = tiny_config(batch_size=4)
    scenes = tiny_scenes()
    with pytest.raises(ValueError, match=r"batch_size.*multiple of 3 processes.*got 4"):
        train(run, tiny_pairs(scenes, run), [], tmp_path, processes=Processes(0, 3))


def test_the_shares_of_all_processes_are_the_batch():
    settings = tiny_config(batch_size=12, accumulate=2).train
    for iteration in (0, 5):
        made = [part for rank in range(3) for part in settings.parts(iteration, 3, rank)]
        assert [len(part) for part in made] == [2] * 6
        expected = list(range(12 * iteration, 12 * iteration + 12))
        assert [index for part in made for index in part] == expected


def test_without_an_environment_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes() as processes:
        assert processes == Processes()
        assert processes.leads
        assert processes.device("auto") == "auto"
        assert processes.agree(15, 2.5) == (15, 2.5)
        assert processes.same(3)


def test_each_process_takes_its_own_gpu_unless_told_otherwise():
    second = Processes(rank=9, count=16, local_rank=1)
    assert second.device("cuda") == "cuda:1"
    assert second.device("cpu") == "cpu"
    assert not second.leads


def test_an_environment_with_holes_names_what_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match=r"LOCAL_RANK.*torchrun"), joined_processes():
        pass
