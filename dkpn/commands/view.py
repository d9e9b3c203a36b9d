"""``dkpn view``: look at results in a browser."""

import argparse
import glob
import sys
from pathlib import Path

from dkpn.commands.common import (
    DONE,
    FILE_FAILED,
    PAGE_SUFFIXES,
    UsageError,
    add_device,
    add_weights,
    add_white_nits,
    check_new_file,
    check_white_nits,
    chosen_weights,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Write one HTML file to look at HDR images with: exposure, before and after, luminance in "
        "false colours, histograms. With --photo also the masks and filters that the network "
        "predicts."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT",
        help=".exr or .hdr files, folders of them, or patterns",
    )
    add(
        "--photo",
        nargs="+",
        type=Path,
        default=[],
        metavar="P",
        help="the photo of each result, in the same order",
    )
    add(
        "-o",
        "--output",
        type=Path,
        default=Path("view.html"),
        metavar="OUT.html",
        help="page to write (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace an output that exists")
    add_white_nits(parser)
    add_weights(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from dkpn.hdr_io import read_hdr
    from dkpn.photos import read_photo
    from dkpn.viewer import View, look_inside, write_page

    output, results = options.output, _expanded(options.results)
    check_new_file(f"-o {output}", output, PAGE_SUFFIXES, options.overwrite)
    if options.photo and len(options.photo) != len(results):
        raise UsageError(
            f"--photo: expected one for each of {len(results)} results, got {len(options.photo)}"
        )
    check_white_nits(options.white_nits)
    model = chosen_weights(options) if options.photo else None
    views, failed = [], 0
    for index, path in enumerate(results):
        try:
            photo = insight = None
            result = read_hdr(path)
            if model is not None:
                photo = read_photo(options.photo[index]).pixels
                if photo.shape != result.shape:
                    raise ValueError(
                        f"{options.photo[index]}: has {photo.shape[1]} x {photo.shape[0]} pixels, "
                        f"{path} has {result.shape[1]} x {result.shape[0]}; they do not belong "
                        "together"
                    )
                insight = look_inside(model, photo)
            views.append(View(path.stem, result, photo, insight))
        except (OSError, ValueError, MemoryError) as error:
            failed += 1
            print(f"dkpn view: {error}", file=sys.stderr)
    if views:
        try:
            write_page(output, views, options.white_nits)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            print(f"dkpn view: {output}: cannot be written ({reason})", file=sys.stderr)
            return FILE_FAILED
        print(output)
    return FILE_FAILED if failed else DONE


def _expanded(named: list[Path]) -> list[Path]:
    """The files that arguments stand for; UsageError where a folder or a pattern holds none."""
    from dkpn.hdr_io import HDR_SUFFIXES

    found = []
    for path in named:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in HDR_SUFFIXES)
        elif any(letter in str(path) for letter in "*?[") and not path.exists():
            files = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        else:
            files = [path]
        if not files:
            raise UsageError(f"{path}: holds no {' or '.join(HDR_SUFFIXES)} file")
        found += files
    return found
