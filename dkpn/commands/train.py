"""``dkpn train``: train a network on HDR images."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dkpn.commands.common import DONE, FILE_FAILED, SIGNALLED, UsageError, add_device, usable_device
from dkpn.config import TrainConfig  # the standard library is all that it needs

if TYPE_CHECKING:
    from dkpn.model import DKPN
    from dkpn.parallel import Processes
    from dkpn.run_config import RunConfig
    from dkpn.schedule import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Train a network. Photos are made from the HDR images on the fly by a virtual camera. "
        "Ctrl-C and SIGTERM save a checkpoint; go on with --resume auto. Exit codes: 0 finished, 1 "
        "the training failed (disk full, loss not finite), 2 wrong use, 130 stopped by Ctrl-C, 143 "
        "stopped by SIGTERM. torchrun starts several processes, see docs/training.md."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    defaults = TrainConfig()
    add("--data", type=Path, metavar="DIR", help="HDR images (.hdr, .exr); default: generated")
    add("--val", type=Path, metavar="DIR", help="HDR images; default: a tenth of --data's scenes")
    add(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="all choices, or the name of a "
        "configuration that dkpn brings; the options below override",
    )
    add(
        "--out",
        type=Path,
        default=Path("runs/dkpn"),
        metavar="RUN",
        help="folder of the run (default: %(default)s)",
    )
    add("--resume", metavar="auto|PATH", help="go on from the newest checkpoint of RUN, or PATH")
    add(
        "--iterations",
        type=int,
        metavar="N",
        help=f"optimizer steps (default: {defaults.iterations})",
    )
    add("--minutes", type=float, metavar="M", help="end after so many minutes of training, too")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"samples a step (default: {defaults.batch_size})",
    )
    add("--crop-size", type=int, metavar="PIXELS", help="side of a training crop")
    add(
        "--learning-rate",
        type=float,
        metavar="X",
        help=f"after the warm-up (default: {defaults.learning_rate})",
    )
    add("--weights", type=Path, metavar="W", help="fine-tune these instead of starting afresh")
    add("--seed", type=int, metavar="N", help="of the first weights and of the training pairs")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from dkpn.parallel import joined_processes
    from dkpn.schedule import StopRequest

    if options.val is not None and options.data is None:
        raise UsageError("--val without --data; generated scenes bring their own validation")
    stop = StopRequest()
    try:
        with joined_processes() as processes:
            _train(options, processes, stop)
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        raise UsageError(str(error)) from None
    except (OSError, FloatingPointError) as error:
        print(f"dkpn train: {error}", file=sys.stderr)
        return FILE_FAILED
    if processes.leads:
        if stop.requested:
            print(f"stopped; go on with --out {options.out} --resume auto")
        print(f"weights: {options.out / 'model.safetensors'}")
    return SIGNALLED + stop.number if stop.requested else DONE


def _train(options: argparse.Namespace, processes: "Processes", stop: "StopRequest") -> None:
    import torch

    from dkpn.checkpoint import load_weights
    from dkpn.run_config import find_config
    from dkpn.run_folder import find_resume
    from dkpn.train import train
    from dkpn.training_data import training_data

    device = usable_device(processes.device(options.device))
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # or each process would take memory of the first GPU, too
    quiet = not processes.leads
    try:
        config = _run_config(options)
        start = None if options.weights is None else load_weights(options.weights)
        if start is not None:
            config = _with_model_of(start, config)
        config_file = None if options.config is None else find_config(options.config)
        resume = find_resume(options.out, options.resume)
        pairs, validation = training_data(config, options.data, options.val, device, quiet)
    except OSError as error:
        raise UsageError(str(error)) from None
    with stop.listening():
        train(
            config,
            pairs,
            validation,
            options.out,
            start=start,
            resume=resume,
            device=device,
            processes=processes,
            stop=stop,
            config_file=config_file,
        )


def _with_model_of(start: "DKPN", config: "RunConfig") -> "RunConfig":
    """The configuration with the choices of a network that is fine-tuned."""
    from dkpn.config import DKPNConfig

    if config.model not in (DKPNConfig(), start.config):
        raise ValueError(
            "--weights: the network has other choices than [model] of the configuration; leave "
            "that table out"
        )
    return dataclasses.replace(config, model=start.config)


def _run_config(options: argparse.Namespace) -> "RunConfig":
    """The configuration file, or the defaults, with the command line's own values over it."""
    from dkpn.run_config import RunConfig, read_run_config

    config = RunConfig() if options.config is None else read_run_config(options.config)
    names = ("iterations", "minutes", "batch_size", "learning_rate", "seed")
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **given))
    if options.crop_size is not None:
        data = dataclasses.replace(config.data, crop_size=options.crop_size)
        config = dataclasses.replace(config, data=data)
    return config
