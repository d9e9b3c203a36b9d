"""What the commands share: exit codes, the error of wrong use, devices and weights.

Only the standard library is imported before it is known that the extra is installed.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dkpn.model import DKPN

DONE, FILE_FAILED, WRONG_USE = 0, 1, 2
SIGNALLED = 128  # and the number of the signal
PAGE_SUFFIXES = (".html", ".htm")


class UsageError(Exception):
    """Wrong arguments, configuration or weights; its text is shown without a traceback."""


def show(text: str) -> None:
    """Print a line on standard output, above a progress bar; nothing once its reader has gone."""
    from tqdm import tqdm

    try:
        tqdm.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def drop_output() -> None:
    """Let what is still written to standard output go nowhere: its reader has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


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


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--weights``."""
    parser.add_argument(
        "--weights",
        metavar="W",
        help="model.safetensors, or a folder that holds it; default: those of the package",
    )


def chosen_weights(options: argparse.Namespace) -> "DKPN":
    """The network of ``--weights`` on ``--device``; UsageError where either cannot be used."""
    from dkpn.pretrained import load

    device = usable_device(options.device)
    try:
        return load(options.weights, device)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--weights: {error}") from None


def add_white_nits(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--white-nits``."""
    parser.add_argument(
        "--white-nits", type=float, default=203.0, metavar="X", help="cd/m² of 1.0 (default: 203)"
    )


def check_white_nits(value: float) -> None:
    """Raise UsageError where ``--white-nits`` is out of range."""
    if not 0 < value <= 10000:
        raise UsageError(f"--white-nits {value:g}: expected more than 0, at most 10000")


def check_new_file(name: str, path: Path, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Raise UsageError where a file cannot be written as ``path``.

    Args:
        name: what to call it, the option and its value.
        path: the file.
        suffixes: of which it must have one, the first is recommended.
        overwrite: whether it may exist.
    """
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{name}: expected a name that ends in {suffixes[0]}")
    if not path.parent.is_dir():
        raise UsageError(f"{name}: the folder {path.parent} does not exist; create it first")
    if path.exists() and not overwrite:
        raise UsageError(f"{name}: exists already; allow that with --overwrite")
