"""``dkpn train``: train a network on HDR images."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dkpn.cli_common import DONE, UsageError, add_device, usable_device
from dkpn.config import TrainConfig  # the standard library is all that it needs

if TYPE_CHECKING:
    from dkpn.train import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Train a network. Photos are made from the HDR images on the fly by a virtual camera. "
        "Ctrl-C saves a checkpoint; go on with --resume auto."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    defaults = TrainConfig()
    add("--data", type=Path, metavar="DIR", help="HDR images (.hdr, .exr); default: generated")
    add("--val", type=Path, metavar="DIR", help="HDR images; default: a tenth of --data's scenes")
    add("--config", type=Path, metavar="FILE.toml", help="all choices; the options below override")
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
    add(
        "--workers",
        type=int,
        metavar="N",
        help=f"processes that make training pairs (default: {defaults.workers})",
    )
    add("--seed", type=int, metavar="N", help="of the first weights and of the training pairs")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from dkpn.train import (
        StopRequest,
        find_resume,
        keep_config_file,
        leave_cores_to,
        train,
        training_data,
    )

    if options.val is not None and options.data is None:
        raise UsageError("--val without --data; generated scenes bring their own validation")
    device = usable_device(options.device)
    try:
        config = _run_config(options)
        resume = find_resume(options.out, options.resume)
        pairs, validation = training_data(config, options.data, options.val)
        if options.config is not None:
            keep_config_file(options.config, options.out)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    if device == "cpu":
        leave_cores_to(config.train.workers)
    stop = StopRequest()
    with stop.listening():
        try:
            train(config, pairs, validation, options.out, resume=resume, device=device, stop=stop)
        except (OSError, ValueError) as error:
            raise UsageError(str(error)) from None
    if stop.requested:
        print(f"stopped; go on with --out {options.out} --resume auto")
    print(f"weights: {options.out / 'model.safetensors'}")
    return DONE


def _run_config(options: argparse.Namespace) -> "RunConfig":
    """The configuration file, or the defaults, with the command line's own values over it."""
    from dkpn.train import RunConfig, read_run_config

    config = RunConfig() if options.config is None else read_run_config(options.config)
    names = ("iterations", "minutes", "batch_size", "learning_rate", "workers", "seed")
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **given))
    if options.crop_size is not None:
        data = dataclasses.replace(config.data, crop_size=options.crop_size)
        config = dataclasses.replace(config, data=data)
    return config
