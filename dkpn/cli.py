"""The command ``dkpn``: reconstruct, view, train, prepare, evaluate, export.

Exit codes: 0 all done; 1 a file failed; 2 wrong arguments, configuration or weights, or a missing
package; 130 interrupted by Ctrl-C. No package of the extra is imported before it is known that the
command's are installed.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from dkpn.allocator import reuse_freed_memory
from dkpn.commands import evaluate, export, prepare, reconstruct, train, view
from dkpn.commands.common import FILE_FAILED, SIGNALLED, WRONG_USE, UsageError, drop_output
from dkpn.commands.completion import SHELLS, PrintCompletion
from kpnops import __version__

# What the commands need beyond the core: name to import, name to install.
EXTRA_PACKAGES = {
    "safetensors": "safetensors",
    "PIL": "pillow",
    "imagecodecs": "imagecodecs",
    "OpenEXR": "OpenEXR",
    "tifffile": "tifffile",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
}
# Which of them each one needs whatever its arguments are. The codecs of .hdr and .exr files are
# asked for by such a file: to train from a prepared set takes none.
NEEDED_PACKAGES = {
    "prepare": (),
    "train": ("safetensors", "PIL", "matplotlib", "tqdm"),
    "reconstruct": ("safetensors", "PIL", "imagecodecs", "OpenEXR", "tifffile", "tqdm"),
    "view": ("safetensors", "PIL"),
    "evaluate": ("safetensors", "PIL", "tqdm"),
    "export": ("safetensors",),
}


def entry_point() -> int:
    """Run the installed command ``dkpn``."""
    reuse_freed_memory()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; say what to install where a package that it needs is missing.

    Args:
        arguments: words after ``dkpn``; None: those of the process.

    Returns:
        The exit code.
    """
    try:
        options = parsers()[0].parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its message, or the help
        return stop.code if isinstance(stop.code, int) else WRONG_USE
    except ModuleNotFoundError as error:
        print(f"dkpn: {error}", file=sys.stderr)
        return WRONG_USE
    needed = NEEDED_PACKAGES[options.command]
    missing = [EXTRA_PACKAGES[module] for module in needed if not _is_installed(module)]
    if missing:
        print(
            f'dkpn {options.command} needs {", ".join(missing)}: pip install "kpnops[dkpn]"',
            file=sys.stderr,
        )
        return WRONG_USE
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except (UsageError, ModuleNotFoundError) as error:
        print(f"dkpn {options.command}: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print(f"dkpn {options.command}: interrupted", file=sys.stderr)
        return SIGNALLED + signal.SIGINT
    except BrokenPipeError:  # as of | head
        drop_output()
        return FILE_FAILED


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a module that is loaded without a specification
        return module in sys.modules


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Describe the command line.

    Returns:
        The parser of ``dkpn``, and that of each of its commands by name.
    """
    parser = argparse.ArgumentParser(
        prog="dkpn",
        description="One 8-bit photo in, an HDR image out: linear Rec.709, 1.0 = the photo's clip "
        "level, taken as diffuse white, 203 cd/m².",
    )
    parser.add_argument("--version", action="version", version=f"dkpn {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        action=PrintCompletion,
        help="print what makes a shell complete commands, options and file names",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of_commands = {}
    for name, module, summary in (
        ("reconstruct", reconstruct, "turn photos into HDR images"),
        ("view", view, "look at HDR images in a browser"),
        ("evaluate", evaluate, "measure a network, or other results, on HDR images"),
        ("prepare", prepare, "turn HDR images into a training set"),
        ("train", train, "train a network on HDR images"),
        ("export", export, "write the network as an ONNX file"),
    ):
        of_commands[name] = commands.add_parser(name, help=summary)
        module.add_arguments(of_commands[name])
    return parser, of_commands
