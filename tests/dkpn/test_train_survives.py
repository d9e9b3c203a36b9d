"""A run that is killed at any moment, or whose disk is full, loses at most one interval."""

import errno
import resource
import signal
import time

import numpy as np
import pytest
import torch

from dkpn.checkpoint import latest_checkpoint, load_checkpoint, load_weights, read_json
from dkpn.run_folder import find_resume
from dkpn.schedule import StopRequest
from dkpn.train import new_state, train
from tests.dkpn.training_runs import (
    SMALLEST,
    end,
    rows,
    start,
    tiny_config,
    tiny_pairs,
    tiny_scenes,
    tiny_validation,
    weights,
)

INTERVAL = 2


def kill_and_go_on(run, out, kills, longest):
    """Start a run, kill it, check what it left, and so on; then let it finish.

    A third of the moments lie just behind a new checkpoint, where files are renamed and removed;
    a third within ``longest`` seconds of the start; a third as long after the loop has begun.
    """
    rng, iteration = np.random.default_rng(0), 0
    for kill in range(kills):
        metrics = written(out / "metrics.csv")
        process = start(run, out)
        if kill % 3 == 0:
            wait_until(lambda: saved(out) > iteration, "no checkpoint")  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.05))
        elif kill % 3 == 1:
            time.sleep(rng.uniform(0.0, longest))
        else:
            wait_until(lambda: written(out / "metrics.csv") > metrics, "no metrics")  # noqa: B023
            time.sleep(rng.uniform(0.0, longest))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
        iteration = check_what_is_left(run, out, iteration)
    process = start(run, out)
    process.join(600)
    end(process)
    assert process.exitcode == 0


def wait_until(happened, otherwise):
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, f"{otherwise} within two minutes"
        time.sleep(0.001)


def written(path):
    """When a file was last written, in nanoseconds; 0 if it does not exist."""
    return path.stat().st_mtime_ns if path.exists() else 0


def saved(out):
    latest = latest_checkpoint(out / "checkpoints")
    return 0 if latest is None else int(latest.name)


def check_what_is_left(run, out, before):
    """What has a final name is whole; returns the iteration of the last checkpoint."""
    iteration = saved(out)
    assert iteration >= before, "a checkpoint is gone"
    reached = [int(row["iteration"]) for row in rows(out, "train")] if started(out) else []
    assert max(reached, default=0) - iteration <= INTERVAL, "more than one interval is lost"
    for path in sorted((out / "checkpoints").glob("[0-9]*")):
        config = read_json(path / "state.json")["config"]
        load_checkpoint(path, new_state(run, torch.device("cpu")), config)
    for folder in (out, out / "best"):
        if (folder / "model.safetensors").exists():
            load_weights(folder)
    return iteration


def started(out):
    return (out / "metrics.csv").exists()


def check_survival(tmp_path, iterations, kills, longest):
    run = tiny_config(
        SMALLEST,
        iterations=iterations,
        checkpoint_every=INTERVAL,
        validate_every=max(10, iterations // 4),
        keep_checkpoints=2,
    )
    kill_and_go_on(run, tmp_path / "killed", kills, longest)
    process = start(run, tmp_path / "whole")
    process.join(600)
    end(process)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in ("", "best"):
        assert torch.equal(weights(killed / folder), weights(whole / folder))
    for split in ("train", "validation"):
        actual, expected = (
            [{name: row[name] for name in row if name != "seconds"} for row in rows(out, split)]
            for out in (killed, whole)
        )
        assert actual == expected
    names = [path.name for path in (killed / "checkpoints").iterdir()]
    assert sorted(names) == [f"{iterations - INTERVAL:08d}", f"{iterations:08d}"]
    assert list(killed.rglob(".*")) == [], "something unfinished is left"


def test_three_kills_lose_nothing(tmp_path):
    check_survival(tmp_path, iterations=40, kills=3, longest=0.3)


@pytest.mark.slow
def test_fifty_kills_lose_nothing(tmp_path):
    check_survival(tmp_path, iterations=1000, kills=50, longest=0.4)


class FullDisk(StopRequest):
    """From an iteration on no file may grow beyond a limit, so that a write fails halfway."""

    def __init__(self, iteration, size):
        super().__init__()
        self.iteration, self.size = iteration, size
        self.soft, self.hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def after(self, iteration):
        if iteration == self.iteration:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.hard))
        return 0

    def make_room(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.soft, self.hard))


def test_a_full_disk_leaves_what_was_there_and_a_clear_message(tmp_path):
    scenes, run = tiny_scenes(), tiny_config(SMALLEST, iterations=6)
    pairs, judged = tiny_pairs(scenes, run), tiny_validation(scenes)
    whole, out = tmp_path / "whole", tmp_path / "full"
    train(run, pairs, judged, whole, quiet=True)
    disk = FullDisk(4, size=20_000)  # more than the CSV file, less than the weights
    assert (whole / "metrics.csv").stat().st_size < disk.size
    assert (whole / "model.safetensors").stat().st_size > disk.size
    try:
        message = r"00000004: could not be written.*intact.*resume"
        with pytest.raises(OSError, match=message) as caught:
            train(run, pairs, judged, out, stop=disk, quiet=True)
    finally:
        disk.make_room()
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["00000002"]
    assert check_what_is_left(run, out, 2) == 2
    train(run, pairs, judged, out, resume=find_resume(out, "auto"), quiet=True)
    assert torch.equal(weights(out), weights(whole))
