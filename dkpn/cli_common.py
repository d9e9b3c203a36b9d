"""What the commands share: exit codes, the error of wrong use, devices and weights.

Only the standard library is imported before it is known that the extra is installed.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dkpn.model import DKPN

HOW_TO_TRAIN = (
    "no weights are shipped yet; train some with\n"
    "  dkpn train --data FOLDER_OF_HDR_IMAGES --out runs/first\n"
    "and pass --weights runs/first"
)
DONE, FILE_FAILED, WRONG_USE = 0, 1, 2


class UsageError(Exception):
    """Wrong arguments, configuration or weights; its text is shown without a traceback."""


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--device``."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help='torch device, e.g. "cpu" or "cuda:1"; default: a GPU where there is one',
    )


def usable_device(name: str) -> str:
    """The torch device that an option names; UsageError where it cannot be used."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: cannot be used ({error})") from None
    return name


def chosen_weights(options: argparse.Namespace) -> "DKPN":
    """The network of ``--weights`` on ``--device``; UsageError where either cannot be used."""
    from dkpn.checkpoint import load_weights

    if options.weights is None:
        raise UsageError(f"--weights is missing: {HOW_TO_TRAIN}")
    try:
        model = load_weights(options.weights)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--weights: {error}") from None
    return model.to(usable_device(options.device))
