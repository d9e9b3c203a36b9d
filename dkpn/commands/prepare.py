"""``dkpn prepare``: turn folders of HDR images into a training set."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dkpn.commands.common import DONE, FILE_FAILED, UsageError

if TYPE_CHECKING:
    from dkpn.prepare.folders import Prepared

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Turn folders of HDR images into a training set, compressed half floats that numpy alone "
        "reads: dkpn train --data SET. Says what it refuses and why; exits with 1 where a file "
        "could not be read, although the set is made of the others."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="HDR images (.hdr, .exr)")
    add("--out", type=Path, required=True, metavar="SET", help="folder to write; does not exist")
    add("--overwrite", action="store_true", help="replace SET where it is a prepared set")
    add(
        "--panorama",
        choices=("yes", "no", "auto"),
        default="auto",
        help="whether the images are equirectangular; auto: those twice as wide as high whose "
        "sides meet (default)",
    )
    add(
        "--max-size",
        type=size_in_bytes,
        metavar="SIZE",
        help="of the whole set, e.g. 45MiB: to fit, it keeps 6 bits of mantissa, drops photos "
        "whose scene has a panorama, and shrinks all images, in this order",
    )
    add("--max-side", type=int, metavar="PIXELS", help="shrink larger images to it")
    add(
        "--min-side",
        type=int,
        metavar="PIXELS",
        help="refuse images with a shorter side, and shrink none below it (default: 192, the "
        "crop size of training)",
    )
    add(
        "--min-stops",
        type=float,
        metavar="N",
        help="refuse images of less range, from the 1st to the 99.5th percentile of luminance "
        "(default: 3.5)",
    )
    add(
        "--bits",
        type=int,
        metavar="N",
        help="of the mantissa that are kept (default: all 10; 6, errors of at most 0.8 %%, where "
        "--max-size asks for it)",
    )
    add(
        "--covered",
        choices=("keep", "drop", "auto"),
        default="auto",
        help="photos whose scene, their name before '__', has a panorama; auto: dropped where "
        "--max-size asks for it (default)",
    )


def size_in_bytes(text: str) -> int:
    """Read a size such as ``45MiB``, ``1.5 GB`` or ``70000``.

    >>> size_in_bytes("1.5KiB")
    1536
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number and a unit: B, KiB, MiB, GiB, kB, MB or GB"
        )
    return int(float(found[1]) * _UNITS[found[2]])


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from dkpn.prepare import PrepareSettings, prepare

    names = ("panorama", "max_side", "min_side", "min_stops", "bits", "covered")
    given = {name: getattr(options, name) for name in names}
    given["max_bytes"] = options.max_size
    try:
        settings = PrepareSettings(**{k: v for k, v in given.items() if v is not None})
        made = prepare(
            options.folders,
            options.out,
            settings,
            overwrite=options.overwrite,
            say=lambda line: print(line, file=sys.stderr),
        )
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        print(f"dkpn prepare: {error}; nothing was written", file=sys.stderr)
        return FILE_FAILED
    print(summary(made))
    return FILE_FAILED if any(one.broken for one in made.refused) else DONE


def summary(made: "Prepared") -> str:
    """Say what a set holds, and what it does not."""
    manifest = made.manifest
    pictures, left_out = manifest["pictures"], manifest["left_out"]
    panoramas = sum(picture["kind"] == "panorama" for picture in pictures)
    scenes = len({picture["scene"] for picture in pictures})
    scale = manifest["scale"]
    shrunk = "none shrunk" if scale == 1 else f"shrunk: to {scale:g} of the side"
    lines = [
        f"{made.folder}: {len(pictures)} pictures of {scenes} scenes, {panoramas} of them "
        f"panoramas, {made.bytes / 2**20:.2f} MiB",
        f"mantissa: {manifest['mantissa_bits']} bits; {shrunk}",
    ]
    clamped = [picture for picture in pictures if picture["clamped_pixels"]]
    if clamped:
        count = sum(picture["clamped_pixels"] for picture in clamped)
        lines.append(f"clamped at 65504 times the median: {count} pixels in {len(clamped)}")
    if left_out:
        lines.append(f"left out, since their scene has a panorama: {len(left_out)} photos")
    if made.refused:
        lines.append(f"refused: {len(made.refused)}")
        lines += [f"  {one.source}: {one.reason}" for one in made.refused]
    return "\n".join(lines)
