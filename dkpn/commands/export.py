"""``dkpn export``: write the network as an ONNX file."""

import argparse
import re
import sys
from pathlib import Path

from dkpn.commands.common import DONE, FILE_FAILED, UsageError, add_weights, check_new_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Write the network as an ONNX file for photos of one size: input image (1, 3, H, W) "
        "sRGB-encoded in [0, 1], output result (1, 3, H, W) linear Rec.709."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("output", type=Path, metavar="OUT.onnx", help="file to write")
    add("--size", required=True, metavar="WxH", help="of the photos, pixels, e.g. 1024x768")
    add("--overwrite", action="store_true", help="replace an output that exists")
    add_weights(parser)
    parser.set_defaults(device="cpu")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from dkpn.commands.common import chosen_weights
    from dkpn.export import export_onnx

    found = re.fullmatch(r"(\d+)x(\d+)", options.size)
    if not found or not int(found[1]) * int(found[2]):
        raise UsageError(f"--size {options.size}: expected width x height, such as 1024x768")
    output = options.output
    check_new_file(str(output), output, (".onnx",), options.overwrite)
    model = chosen_weights(options)
    try:
        export_onnx(model, output, (int(found[2]), int(found[1])))
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        print(f"dkpn export: {output}: cannot be written ({error})", file=sys.stderr)
        return FILE_FAILED
    print(output)
    return DONE
