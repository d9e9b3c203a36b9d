"""The training loop, from configuration to final weights, in one process or several.

A run is a folder:

=====================  ===========================================================
``config.toml``         the configuration file it was started with, if any
``run.json``            the whole configuration, defaults included, a hash of the images, and
                        the commit of the code for each iteration that it was started at
``metrics.csv``         training and validation numbers; ``metrics.png`` plots them,
                        ``tensorboard/`` holds them too where asked for
``validation/``         pictures: photo, preliminary result, mask, result, truth
``checkpoints/``        see :mod:`dkpn.checkpoint`
``best/``               averaged weights of the lowest validation loss, ``validation.json``
                        beside them
``model.safetensors``   averaged weights of the last checkpoint, ``config.json`` beside them
=====================  ===========================================================
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dkpn.checkpoint import TrainingState, load_checkpoint, save_checkpoint, save_weights
from dkpn.curve_fit import fit_curve
from dkpn.losses import LossTerms, reconstruction_loss
from dkpn.model import DKPN
from dkpn.monitor import Recorder, ValidationPair
from dkpn.parallel import Processes
from dkpn.run_config import RunConfig
from dkpn.run_folder import fingerprint, open_run
from dkpn.schedule import Clock, StopRequest, bar_interval
from dkpn.training_pairs import TrainingPairs

CURVE_SHARE = 0.05  # of the minutes, to make the photos that the response curve is fitted to
LOG_EVERY = 10  # iterations between two training rows of the metrics


def train(
    config: RunConfig,
    pairs: TrainingPairs,
    validation: Sequence[ValidationPair],
    out: Path,
    *,
    start: DKPN | None = None,
    resume: Path | None = None,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
    stop: StopRequest | None = None,
    config_file: Path | None = None,
    quiet: bool = False,
) -> DKPN:
    """Train a network, or go on with a run that was stopped.

    Args:
        config: all choices.
        pairs: the training set, a pure function of (seed, index).
        validation: (name, photo uint8 (H, W, 3), truth float32 (H, W, 3)) for each image.
        out: the run's folder, created if absent.
        start: network to fine-tune, of the same choices as ``config.model``; None: fresh weights.
            A run that is resumed has its own.
        resume: a checkpoint's folder to go on from, see :func:`dkpn.run_folder.find_resume`.
        device: where the network is trained, and the pairs are.
        processes: that train together, each called with the same arguments; None: this one alone.
        stop: asked after every iteration; a stopped run has saved a checkpoint. Afterwards it says
            whether the run has been stopped, by a signal to whichever process.
        config_file: of which the run's folder gets a copy.
        quiet: no progress bar.

    Returns:
        The network with the averaged weights.

    Raises:
        FileNotFoundError: ``resume`` is no checkpoint.
        FloatingPointError: the loss, its gradient or a weight is no longer finite; nothing of it
            has been saved.
        OSError: the disk is full, or cannot be written to; the last checkpoint is intact.
        ValueError: ``resume`` or ``start`` belongs to another configuration, the processes do not
            see the same files, or the batch cannot be divided among them.
    """
    settings, device, stop = config.train, torch.device(device), stop or StopRequest()
    processes = processes or Processes()
    settings.parts(0, processes.count)
    torch.manual_seed(settings.seed)
    state, clock = new_state(config, device, start), Clock(settings)
    run = dataclasses.asdict(config) | {"images": fingerprint(pairs)}
    if resume is not None:
        defaults = dataclasses.asdict(RunConfig())
        clock.seconds = load_checkpoint(resume, state, run, defaults)
    _require_same(processes, run, state.iteration)
    if processes.leads:
        open_run(out, run, config_file, state.iteration)
        if resume is not None:
            save_weights(out, state.ema)
    if (
        resume is None
        and start is None
        and not _fit_curve(state, config, pairs, processes, clock, stop, quiet)
    ):
        return state.ema.eval()  # nothing is lost but this fit: the next start begins anew
    recorder = Recorder(
        out, validation, config.loss, state.iteration, processes, settings.tensorboard
    )
    stream = pairs.batches(
        part
        for iteration in range(state.iteration, settings.iterations)
        for part in settings.parts(iteration, processes.count, processes.rank)
    )
    # However few the minutes, a run takes one step.
    finished = state.iteration > 0 and clock.finished(state.iteration)
    stopping, signal_number = False, 0
    with contextlib.closing(recorder), contextlib.closing(stream):
        if state.iteration == 0:
            recorder.validate(state, clock.seconds)
        bar = tqdm(
            total=settings.iterations,
            initial=state.iteration,
            unit="it",
            disable=quiet or not processes.leads,
            mininterval=bar_interval(),
        )
        while not finished and not stopping:
            clock.start()
            rate = clock.learning_rate(state.iteration)
            batches = itertools.islice(stream, settings.accumulate)
            recorder.add(*training_step(state, batches, rate, config, processes))
            clock.pause()
            bar.update()
            signal_number, clock.seconds = processes.agree(
                stop.after(state.iteration), clock.seconds
            )
            finished = clock.finished(state.iteration)
            stopping = signal_number != 0 and not finished
            saving = finished or stopping or state.iteration % settings.checkpoint_every == 0
            if saving or state.iteration % LOG_EVERY == 0:  # a loss that is not finite is not saved
                loss, psnr = recorder.log(state, clock.seconds, rate)
                bar.set_postfix(loss=f"{loss:.3f}", PSNR=f"{psnr:.2f} dB", refresh=False)
            if finished or (not stopping and state.iteration % settings.validate_every == 0):
                recorder.validate(state, clock.seconds)
            if saving and processes.leads:
                checkpoints = out / "checkpoints"
                save_checkpoint(checkpoints, state, run, settings.keep_checkpoints, clock.seconds)
                save_weights(out, state.ema)
        # a process that ends before the first one has saved would take it along
        processes.wait()
        bar.close()
    stop.number = signal_number if stopping else 0
    return state.ema.eval()


def new_state(config: RunConfig, device: torch.device, start: DKPN | None = None) -> TrainingState:
    """A network with fresh weights, or those of another one, its average, and the optimizer."""
    if start is not None and start.config != config.model:
        raise ValueError(
            "start: the network has other choices than config.model; take those of the network"
        )
    model, ema = (DKPN(config.model, head=config.train.head).to(device) for _ in range(2))
    for network in (model, ema):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if start is not None:
        model.load_state_dict(start.state_dict())
    ema.load_state_dict(model.state_dict())
    ema.requires_grad_(False)
    if config.train.compile:
        model.compile()  # in place: parameters keep their names
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.train.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.train.weight_decay,
    )
    return TrainingState(model, ema, optimizer)


def training_step(
    state: TrainingState,
    batches: Iterable[tuple[Tensor, Tensor]],
    learning_rate: float,
    config: RunConfig,
    processes: Processes,
) -> tuple[LossTerms, Tensor]:
    """One optimizer step and one step of the average; ``state`` changes in place.

    Args:
        state: of the training.
        batches: photos and truths of this process's share of the batch, in ``accumulate`` parts.
        learning_rate: of this step.
        config: all choices.
        processes: that take this step together.

    Returns:
        The loss of this process's share, and the L2 norm of the whole batch's gradient.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.zero_grad(set_to_none=True)
    losses = []
    for photo, truth in batches:
        half = config.train.in_bfloat16(photo.device.type)
        with torch.autocast(photo.device.type, torch.bfloat16, enabled=half):
            output = state.model(photo)
        terms = reconstruction_loss(output, photo, truth, config.loss)
        (terms.total / config.train.accumulate).backward()
        losses.append(dataclasses.replace(terms, total=terms.total.detach()))
    parameters = list(state.model.parameters())
    processes.average([weight.grad for weight in parameters if weight.grad is not None])
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.train.gradient_clip)
    state.optimizer.step()
    # Early on the average follows quickly, or the first weights would stay in it for long.
    decay = min(config.train.ema_decay, (1 + state.iteration) / (10 + state.iteration))
    with torch.no_grad():
        for average, weight in zip(state.ema.parameters(), parameters, strict=True):
            average.lerp_(weight, 1.0 - decay)
    state.iteration += 1
    names = [field.name for field in dataclasses.fields(LossTerms)]
    means = [torch.stack([getattr(loss, name) for loss in losses]).mean() for name in names]
    return LossTerms(*means), norm


def _fit_curve(
    state: TrainingState,
    config: RunConfig,
    pairs: TrainingPairs,
    processes: Processes,
    clock: Clock,
    stop: StopRequest,
    quiet: bool,
) -> bool:
    """Fit the response curve first; False where the run has been stopped meanwhile."""
    settings, quiet = config.train, quiet or not processes.leads
    clock.start()
    fit_curve(
        state.model,
        pairs,
        # A short run would spend itself in it.
        min(settings.curve_photos, settings.iterations * settings.batch_size),
        seed=settings.seed,
        seconds=math.inf if settings.minutes is None else CURVE_SHARE * 60.0 * settings.minutes,
        processes=processes,
        stop=stop,
        quiet=quiet,
    )
    clock.pause()
    stop.number, clock.seconds = processes.agree(stop.number, clock.seconds)
    if stop.requested:
        return False
    # All processes fitted to the same photos; what they added up in another order is made equal.
    processes.average([tensor.detach() for tensor in state.model.state_dict().values()])
    state.ema.load_state_dict(state.model.state_dict())
    return True


def _require_same(processes: Processes, run: Mapping[str, object], iteration: int) -> None:
    """Raise ValueError where another process has other choices, images or checkpoints."""
    digest = hashlib.sha256(json.dumps([run, iteration]).encode()).digest()
    if not processes.same(int.from_bytes(digest[:7], "big")):
        raise ValueError(
            f"process {processes.rank} starts at iteration {iteration} with {run['images']}, "
            "another one elsewhere or with other choices; the run's folder, the images and the "
            "program have to be the same for all processes, on a file system that they share"
        )
