"""``dkpn evaluate``: measure a network on HDR images."""

import argparse
import sys
from pathlib import Path

from dkpn.cli_common import DONE, FILE_FAILED, UsageError, add_device, chosen_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Photograph HDR images with a virtual camera that the path of each decides, reconstruct "
        "them, and print PU21-PSNR in dB beside the LDR input and the camera oracle."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="HDR images (.hdr, .exr)")
    add("--weights", type=Path, metavar="W", help="model.safetensors, or a folder that holds it")
    add("--out", type=Path, metavar="DIR", help="write per_image.csv and table.md there")
    add("--save-inputs", type=Path, metavar="DIR", help="write the JPEG inputs there")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from tqdm import tqdm

    from dkpn.data import find_images
    from dkpn.evaluate import evaluate
    from dkpn.hdr_io import write_atomically

    try:
        count = len(find_images(options.data))
    except (OSError, ValueError) as error:
        raise UsageError(f"--data: {error}") from None
    for name, folder in (("--out", options.out), ("--save-inputs", options.save_inputs)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UsageError(f"{name} {folder}: is a file, expected a folder")
    model = chosen_weights(options)
    try:
        with tqdm(total=count, unit="image") as bar:
            evaluation = evaluate(
                options.data,
                {"DKPN": model.infer},
                save_inputs=options.save_inputs,
                progress=lambda _: bar.update(),
            )
    except (OSError, ValueError) as error:
        print(f"dkpn evaluate: {error}", file=sys.stderr)
        return FILE_FAILED
    table = evaluation.table()
    print(table)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        evaluation.write_csv(options.out / "per_image.csv")
        write_atomically(
            options.out / "table.md",
            lambda path: path.write_text(table + "\n", encoding="utf-8"),
        )
    return DONE
