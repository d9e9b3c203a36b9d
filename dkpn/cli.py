"""The command ``dkpn``: train, reconstruct, evaluate.

Exit codes: 0 all done; 1 a file failed; 2 wrong arguments, configuration or weights, or a missing
package. Only the standard library is imported before it is known that the extra is installed.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from dkpn import cli_evaluate, cli_reconstruct, cli_train
from dkpn.cli_common import FILE_FAILED, WRONG_USE, UsageError

# What the command needs beyond the core: name to import, name to install.
EXTRA_PACKAGES = {
    "safetensors": "safetensors",
    "PIL": "pillow",
    "imagecodecs": "imagecodecs",
    "OpenEXR": "OpenEXR",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
}


def entry_point() -> int:
    """Run the installed command ``dkpn``; say what to install where its extra is missing."""
    missing = [name for module, name in EXTRA_PACKAGES.items() if not _is_installed(module)]
    if missing:
        print(
            f'dkpn needs {", ".join(missing)}: pip install "kpnops[dkpn]"',
            file=sys.stderr,
        )
        return WRONG_USE
    return main()


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a module that is loaded without a specification
        return module in sys.modules


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: words after ``dkpn``; None: those of the process.

    Returns:
        The exit code.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its message, or the help
        return stop.code if isinstance(stop.code, int) else WRONG_USE
    try:
        return options.run(options)
    except UsageError as error:
        print(f"dkpn {options.command}: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print(f"dkpn {options.command}: interrupted", file=sys.stderr)
        return FILE_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dkpn",
        description="One 8-bit photo in, an HDR image out: linear Rec.709, 1.0 = the photo's clip "
        "level, taken as diffuse white, 203 cd/m².",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cli_train.add_arguments(commands.add_parser("train", help="train a network on HDR images"))
    cli_reconstruct.add_arguments(
        commands.add_parser("reconstruct", help="turn photos into HDR images")
    )
    cli_evaluate.add_arguments(
        commands.add_parser("evaluate", help="measure a network on HDR images")
    )
    return parser
