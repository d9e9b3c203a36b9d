"""The training loop, from configuration to final weights, in one process.

A run is a folder:

=====================  ===========================================================
``config.toml``         the configuration file it was started with, if any
``run.json``            the whole configuration, defaults included, and a hash of the images
``metrics.csv``         training and validation numbers; ``metrics.png`` plots them
``validation/``         pictures: photo, preliminary result, result, truth
``checkpoints/``        see :mod:`dkpn.checkpoint`
``model.safetensors``   averaged weights, ``config.json`` beside them
=====================  ===========================================================
"""

import contextlib
import dataclasses
import hashlib
import shutil
import signal
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dkpn.camera import CameraConfig
from dkpn.checkpoint import (
    TrainingState,
    checkpoint_iteration,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    write_json,
)
from dkpn.config import DKPNConfig, TrainConfig, config_from_dict
from dkpn.data import (
    DataConfig,
    TrainingPairs,
    find_images,
    load_images,
    make_evaluation_pair,
    split_by_scene,
    validation_pairs,
)
from dkpn.losses import LossConfig, LossTerms, reconstruction_loss
from dkpn.model import DKPN
from dkpn.monitor import Recorder, ValidationPair
from dkpn.scenes import generate_scenes
from dkpn.schedule import Clock

LOG_EVERY = 10  # iterations between two training rows of the metrics
GENERATED_SCENES, GENERATED_VALIDATION = 64, 8
GENERATED_SIDE = 256  # pixels


@dataclass(frozen=True)
class RunConfig:
    """All choices of a run; each field is a table of the TOML file."""

    model: DKPNConfig = field(default_factory=DKPNConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def read_run_config(path: Path) -> RunConfig:
    """Read a TOML file with tables ``[model]``, ``[loss]``, ``[camera]``, ``[data]``, ``[train]``.

    Args:
        path: the file; what it leaves out has its default.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, or a table, field or value is unknown or out of range.
        TypeError: a value has the wrong type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a TOML configuration")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from None
    return config_from_dict(RunConfig, values, str(path))


class StopRequest:
    """Says whether the loop should end after this iteration; signals and tests set it."""

    def __init__(self) -> None:
        self.requested = False

    def after(self, iteration: int) -> bool:
        """Whether to stop now that ``iteration`` steps are done."""
        return self.requested

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM ask for a stop; a second one has its usual effect."""
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: object) -> None:
            self.requested = True
            signal.signal(number, usual[signal.Signals(number)])

        for number in usual:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)


def train(
    config: RunConfig,
    pairs: TrainingPairs,
    validation: Sequence[ValidationPair],
    out: Path,
    *,
    resume: Path | None = None,
    device: torch.device | str = "cpu",
    stop: StopRequest | None = None,
    quiet: bool = False,
) -> DKPN:
    """Train a network, or go on with a run that was stopped.

    Args:
        config: all choices.
        pairs: the training set, a pure function of (seed, index).
        validation: (name, photo uint8 (H, W, 3), truth float32 (H, W, 3)) for each image.
        out: the run's folder, created if absent.
        resume: a checkpoint's folder to go on from, see :func:`find_resume`.
        device: where the network is trained; in bfloat16 (autocast) on a GPU.
        stop: asked after every iteration; a stopped run has saved a checkpoint.
        quiet: no progress bar.

    Returns:
        The network with the averaged weights.

    Raises:
        FileNotFoundError: ``resume`` is no checkpoint.
        ValueError: ``resume`` belongs to another configuration, or the loss is no longer finite.
    """
    settings, device, stop = config.train, torch.device(device), stop or StopRequest()
    torch.manual_seed(settings.seed)
    state, clock = new_state(config, device), Clock(settings)
    run = dataclasses.asdict(config) | {"images": _fingerprint(pairs)}
    if resume is not None:
        clock.seconds = load_checkpoint(resume, state, run)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "run.json", run)
    recorder = Recorder(out, validation, config.loss, state.iteration)
    if state.iteration == 0:
        recorder.validate(state, clock.seconds)

    batches = iter(_loader(pairs, state.iteration, settings, device))
    bar = tqdm(
        total=settings.iterations,
        initial=state.iteration,
        unit="it",
        disable=quiet,
        # In a log file each update is a line.
        mininterval=0.1 if sys.stderr.isatty() else 15.0,
    )
    stopping = False
    while not stopping and not clock.finished(state.iteration):
        clock.start()
        rate = clock.learning_rate(state.iteration)
        recorder.add(training_step(state, next(batches), rate, config, device))
        clock.pause()
        bar.update()
        stopping = stop.after(state.iteration)
        last = stopping or clock.finished(state.iteration)
        saving = last or state.iteration % settings.checkpoint_every == 0
        if saving or state.iteration % LOG_EVERY == 0:  # a loss that is not finite is not saved
            loss, psnr = recorder.log(state, clock.seconds, rate)
            bar.set_postfix(loss=f"{loss:.3f}", PSNR=f"{psnr:.2f} dB", refresh=False)
        if not stopping and (last or state.iteration % settings.validate_every == 0):
            recorder.validate(state, clock.seconds)
        if saving:
            checkpoints = out / "checkpoints"
            save_checkpoint(checkpoints, state, run, settings.keep_checkpoints, clock.seconds)
            save_weights(out, state.ema)
    bar.close()
    return state.ema.eval()


def new_state(config: RunConfig, device: torch.device) -> TrainingState:
    """A network with fresh weights, its average, and the optimizer."""
    model, ema = DKPN(config.model).to(device), DKPN(config.model).to(device)
    ema.load_state_dict(model.state_dict())
    ema.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.train.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.train.weight_decay,
    )
    return TrainingState(model, ema, optimizer)


def training_step(
    state: TrainingState,
    batch: dict[str, Tensor],
    learning_rate: float,
    config: RunConfig,
    device: torch.device,
) -> LossTerms:
    """One optimizer step and one step of the average; ``state`` changes in place."""
    photo = batch["input"].to(device, non_blocking=True)
    truth = batch["target"].to(device, non_blocking=True)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        output = state.model(photo)
    terms = reconstruction_loss(output, photo, truth, config.loss)
    state.optimizer.zero_grad(set_to_none=True)
    terms.total.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.train.gradient_clip)
    state.optimizer.step()
    # Early on the average follows quickly, or the first weights would stay in it for long.
    decay = min(config.train.ema_decay, (1 + state.iteration) / (10 + state.iteration))
    with torch.no_grad():
        for average, weight in zip(state.ema.parameters(), state.model.parameters(), strict=True):
            average.lerp_(weight, 1.0 - decay)
    state.iteration += 1
    return dataclasses.replace(terms, total=terms.total.detach())


def training_data(
    config: RunConfig, data: Path | None, validation: Path | None
) -> tuple[TrainingPairs, list[ValidationPair]]:
    """Read, or generate, what a run trains and validates on.

    Args:
        config: all choices.
        data: folder of HDR images; None: generated scenes.
        validation: folder of HDR images; None: a tenth of the scenes of ``data``, which are then
            not trained on, or other generated scenes.

    Returns:
        The training pairs, and the validation images by the protocol of the evaluation.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder holds no image, too few scenes, or an image that cannot be used.
    """
    seed, most = config.train.seed, config.train.validation_images
    if data is None:
        images = generate_scenes(GENERATED_SCENES, GENERATED_SIDE, seed)
    else:
        files, held_out = find_images(data), []
        if validation is None:
            files, held_out = split_by_scene(files)
        images = load_images(files)
        for path, image in zip(files, images, strict=True):
            if min(image.shape[:2]) < config.data.crop_size:
                raise ValueError(
                    f"{path}: expected at least crop_size = {config.data.crop_size} pixels a side, "
                    f"got {image.shape[1]} x {image.shape[0]}; lower crop_size or move it away"
                )
    pairs = TrainingPairs(images, config.data, camera=config.camera, seed=seed)
    if validation is not None:
        return pairs, validation_pairs(validation, spread(find_images(validation), most))
    if data is not None:
        return pairs, validation_pairs(data, spread(held_out, most))
    scenes = generate_scenes(min(most, GENERATED_VALIDATION), GENERATED_SIDE, seed + 1)
    made = [make_evaluation_pair(scene, f"generated{i}.exr") for i, scene in enumerate(scenes)]
    return pairs, [(pair.name, pair.input, pair.target) for pair in made]


def spread(files: list[Path], most: int) -> list[Path]:
    """Choose at most so many files, evenly spaced over all."""
    count = min(most, len(files))
    return [files[index * len(files) // count] for index in range(count)]


def find_resume(out: Path, resume: str | None) -> Path | None:
    """Decide which checkpoint a run goes on from.

    Args:
        out: the run's folder.
        resume: ``"auto"``: the newest of ``out``, or none; a checkpoint's folder; or None: start
            afresh, which needs a folder without checkpoints.

    Returns:
        The checkpoint's folder, None to start afresh.

    Raises:
        FileExistsError: ``out`` holds checkpoints and ``resume`` is None.
        FileNotFoundError: there is no such checkpoint.
        ValueError: ``out`` holds checkpoints newer than ``resume``.
    """
    latest = latest_checkpoint(out / "checkpoints")
    if resume == "auto":
        return latest
    if resume is None:
        if latest is not None:
            raise FileExistsError(
                f"{out}: holds a run already; go on with --resume auto, or choose another folder"
            )
        return None
    path = Path(resume)
    iteration = checkpoint_iteration(path)
    if latest is not None and checkpoint_iteration(latest) > iteration:
        raise ValueError(
            f"{path}: {out} holds newer checkpoints, the last is {latest.name}; remove those after "
            f"iteration {iteration}, or choose another folder for the run"
        )
    return path


def leave_cores_to(workers: int) -> None:
    """Let PyTorch use as many threads fewer, at least one, as processes make training pairs.

    More busy threads than cores make each convolution wait for the slowest of them.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() - workers))


def keep_config_file(source: Path, out: Path) -> None:
    """Copy the configuration file that a run was started with into its folder."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / "config.toml"
    if not target.exists() or not source.samefile(target):
        shutil.copyfile(source, target)


def _fingerprint(pairs: TrainingPairs) -> str:
    """Number and hash of the training images: to go on with others would be another run."""
    digest = hashlib.sha256()
    for image in pairs.images:
        digest.update(str(image.shape).encode())
        digest.update(np.ascontiguousarray(image[::16, ::16]).tobytes())
    return f"{len(pairs.images)} images, {digest.hexdigest()[:16]}"


def _loader(
    pairs: TrainingPairs, iteration: int, settings: TrainConfig, device: torch.device
) -> DataLoader[dict[str, Tensor]]:
    """Batches from ``iteration`` on: sample ``i`` of the run is always ``pairs[i]``."""
    size = settings.batch_size
    return DataLoader(
        pairs,
        batch_size=size,
        sampler=range(iteration * size, settings.iterations * size),
        num_workers=settings.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_quiet_worker,
        # Of its own, so that the loader does not draw from the generator that resuming restores.
        generator=torch.Generator().manual_seed(settings.seed),
        prefetch_factor=4 if settings.workers else None,
    )


def _quiet_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which may go to all processes, to the training process.

    A worker ends when the training process tells it to, or is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
