"""``dkpn reconstruct``: turn photos into HDR images."""

import argparse
import sys
from pathlib import Path

from dkpn.cli_common import DONE, FILE_FAILED, UsageError, add_device, chosen_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Reconstruct HDR images from photos. Results are linear Rec.709, float32, 1.0 = the "
        "photo's clip level = 203 cd/m²; a tone-mapped preview lies beside each."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("photos", nargs="+", type=Path, metavar="PHOTO", help="JPEG or PNG file")
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="with .exr or .hdr: the file, for one photo; without suffix: a folder, created if "
        "absent, for <stem>.exr and <stem>_preview.png of each photo",
    )
    add("--weights", type=Path, metavar="W", help="model.safetensors, or a folder that holds it")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from tqdm import tqdm

    from dkpn.infer import plan_reconstructions, reconstruct_file

    try:
        plan = plan_reconstructions(options.photos, options.output, options.overwrite)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    model = chosen_weights(options)
    if not options.output.suffix:
        options.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for entry in tqdm(plan, unit="photo", disable=len(plan) == 1):
        try:
            reconstruct_file(model, entry)
        except (OSError, ValueError, MemoryError) as error:
            failed += 1
            tqdm.write(f"dkpn reconstruct: {error}", file=sys.stderr)
        else:
            tqdm.write(f"{entry.hdr}  {entry.preview}")
    if failed and len(plan) > 1:
        print(f"dkpn reconstruct: {failed} of {len(plan)} photos failed", file=sys.stderr)
    return FILE_FAILED if failed else DONE
