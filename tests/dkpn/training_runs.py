"""What tests of the training share: a tiny configuration, its data, and processes that run it."""

import csv
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from dkpn import DKPNConfig, cli
from dkpn.checkpoint import load_weights
from dkpn.config import TrainConfig, config_from_dict
from dkpn.data import make_evaluation_pair
from dkpn.hdr_io import write_hdr
from dkpn.monitor import ValidationPair
from dkpn.parallel import joined_processes
from dkpn.run_config import RunConfig
from dkpn.run_folder import find_resume
from dkpn.scenes import generate_scenes
from dkpn.schedule import StopRequest
from dkpn.train import train
from dkpn.training_pairs import DataConfig, TrainingPairs
from dkpn.views import Scene

TINY = DKPNConfig(
    width=8,
    pooled_width=8,
    channel_multipliers=(1, 2),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)
SMALLEST = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
)

# The same for the command: a run of seconds on the images of write_scenes().
TOML = """
[model]
width = 4
pooled_width = 4
channel_multipliers = [1]
encoder_blocks = [1]
decoder_blocks = []
[data]
crop_size = 16
[train]
iterations = 4
batch_size = 2
curve_photos = 0
validate_every = 2
checkpoint_every = 2
"""

# Largest relative difference of curve() between two runs of a few steps in float32 whose sums are
# rounded in another order: relative steps of 6e-8 add up, and Adam's division enlarges those of
# small gradients. The CSV file's six digits are 5e-6. Gradients of half a batch differ by 1e-1.
SAME_CURVE = 2e-5


def tiny_config(model: DKPNConfig = TINY, **fields: object) -> RunConfig:
    """A run of a few iterations; ``fields`` are those of :class:`TrainConfig`."""
    settings = {
        "iterations": 6,
        "batch_size": 2,
        "curve_photos": 0,
        "learning_rate": 1e-3,
        "validate_every": 3,
        "checkpoint_every": 2,
    }
    return RunConfig(
        model=model,
        data=DataConfig(crop_size=24),
        train=config_from_dict(TrainConfig, settings | fields, "test"),
    )


def tiny_scenes(count: int = 3) -> list[Scene]:
    return [Scene(f"scene{i}", image) for i, image in enumerate(generate_scenes(count, 32))]


def write_scenes(folder: Path) -> Path:
    """Put three small .exr files into a folder, for which OpenEXR has to be there; returns it."""
    for index, scene in enumerate(generate_scenes(3, 48)):
        write_hdr(folder / f"scene{index}.exr", scene)
    return folder


def tiny_pairs(scenes: Sequence[Scene], run: RunConfig) -> TrainingPairs:
    return TrainingPairs(scenes, run.data, camera=run.camera, seed=run.train.seed)


def tiny_validation(scenes: Sequence[Scene]) -> list[ValidationPair]:
    made = [make_evaluation_pair(scene.pixels, f"{scene.name}.exr") for scene in scenes[:2]]
    return [(pair.name, pair.input, pair.target) for pair in made]


def rows(folder: Path, split: str) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def curve(folder: Path) -> list[float]:
    """Losses and norms of gradients, in the order of the run."""
    numbers = [float(row["total"]) for row in rows(folder, "validation")]
    for row in rows(folder, "train"):
        numbers += [float(row["total"]), float(row["gradient_norm"])]
    return numbers


def weights(folder: Path) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(load_weights(folder).parameters())


# --- runs in processes of their own --------------------------------------------------------------


def start(run: RunConfig, out: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """Train in another process, going on where the run in ``out`` stopped; see :func:`_train`."""
    return _start(_train, run, out, environment or {})


def start_command(*words: object) -> BaseProcess:
    """Run the command ``dkpn`` in another process."""
    return _start(_command, [str(word) for word in words])


def _start(function: Callable[..., None], *arguments: object) -> BaseProcess:
    # Forked from a server that has imported everything, and runs nothing itself: starting is cheap.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.dkpn.training_runs"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def _command(words: list[str]) -> None:
    torch.set_num_threads(1)
    raise SystemExit(cli.main(words))


def start_together(run: RunConfig, out: Path, count: int) -> list[BaseProcess]:
    """Train in several processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(run, out, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]


def _train(run: RunConfig, out: Path, environment: dict[str, str]) -> None:
    """Exit as the command does: 0 finished, 128 and the signal's number when stopped."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    scenes, stop = tiny_scenes(), StopRequest()
    with joined_processes() as processes, stop.listening():
        train(
            run,
            tiny_pairs(scenes, run),
            tiny_validation(scenes),
            out,
            resume=find_resume(out, "auto"),
            processes=processes,
            stop=stop,
            quiet=True,
        )
    if stop.requested:
        raise SystemExit(128 + stop.number)


def end(process: BaseProcess) -> None:
    """Make sure that a process is gone."""
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
