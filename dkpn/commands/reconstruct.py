"""``dkpn reconstruct``: turn photos into HDR images."""

import argparse
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

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
    show,
)

if TYPE_CHECKING:
    import numpy as np

    from dkpn.config import DKPNConfig
    from dkpn.jobs import Job
    from dkpn.model import DKPN
    from dkpn.photos import Photo
    from dkpn.reconstruct import Options
    from dkpn.viewer import View

FORMATS = ("exr", "hdr", "tif", "png", "avif", "jpg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Reconstruct HDR images from photos. Results are linear Rec.709, 1.0 = the photo's clip "
        "level, shown at 203 cd/m²; .jpg is UltraHDR with the photo itself as its base, .png and "
        ".avif are PQ. A tone-mapped preview lies beside each."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="files, folders, patterns, or - for stdin")
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="with a suffix: the file, for one photo; without: a folder, created if absent",
    )
    add(
        "--format",
        choices=FORMATS,
        default="exr",
        help="of the files in a folder (default: %(default)s)",
    )
    add("--no-preview", action="store_true", help="write no tone-mapped PNG beside the result")
    add("--report", type=Path, metavar="OUT.html", help="one page to look at all results with")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add("--skip-existing", action="store_true", help="leave out photos whose output exists")
    add_white_nits(parser)
    add("--panorama", action="store_true", help="the left and right edge of the photos meet")
    add("--max-memory", type=float, metavar="GIB", help="for the network (default: half the free)")
    add(
        "--max-pixels",
        type=int,
        default=500_000_000,
        metavar="N",
        help="refuse larger photos unread (default: %(default)s)",
    )
    add("--debug", action="store_true", help="show where an error comes from")
    add_weights(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from tqdm import tqdm

    from dkpn.jobs import plan_jobs
    from dkpn.photos import photo_paths
    from dkpn.reconstruct import Options, reconstruct_jobs

    _check_numbers(options)
    try:
        photos = photo_paths(options.photos)
        jobs, skipped = plan_jobs(
            photos,
            options.output,
            suffix=f".{options.format}",
            preview=not options.no_preview,
            overwrite=options.overwrite,
            skip_existing=options.skip_existing,
        )
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    if skipped:
        missing = "" if options.report is None else f"; not in {options.report}, see dkpn view"
        text = f"{skipped} of {len(photos)} photos left out: their results exist{missing}"
        print(text, file=sys.stderr)
    if not jobs:
        return DONE
    model = chosen_weights(options)
    how = Options(options.white_nits, options.panorama, options.max_memory, options.max_pixels)
    _check_memory(model.config, how, options.device)
    try:
        jobs[0].output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{options.output}: the folder cannot be made ({reason})") from None

    report = _Report(model, options.report, how.white_nits)
    failed = 0
    with tqdm(total=len(jobs), unit="photo", disable=None) as bar, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: tqdm.write(
            f"dkpn reconstruct: {message}", file=sys.stderr
        )

        def progress(job: "Job", share: float) -> None:
            bar.set_postfix_str(f"{job.photo.name} {share:.0%}")

        keep = report.add if options.report else None
        try:
            for job, error in reconstruct_jobs(model, jobs, how, progress=progress, keep=keep):
                bar.update()
                if error is None:
                    show("  ".join(str(target) for target in job.targets))
                else:
                    failed += 1
                    tqdm.write(f"dkpn reconstruct: {_one_line(job, error)}", file=sys.stderr)
                    if options.debug:
                        traceback.print_exception(error)
        except KeyboardInterrupt:
            report.write()
            raise
    failed += not report.write()
    if failed and len(jobs) > 1:
        print(f"dkpn reconstruct: {failed} of {len(jobs)} photos failed", file=sys.stderr)
    return FILE_FAILED if failed else DONE


def _check_numbers(options: argparse.Namespace) -> None:
    if options.overwrite and options.skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other")
    check_white_nits(options.white_nits)
    if options.max_pixels < 1:
        raise UsageError(f"--max-pixels {options.max_pixels}: expected at least 1")
    if options.max_memory is not None and not options.max_memory > 0:
        raise UsageError(f"--max-memory {options.max_memory:g}: expected more than 0 GiB")
    report = options.report
    if report is not None:
        check_new_file(f"--report {report}", report, PAGE_SUFFIXES, options.overwrite)


def _check_memory(config: "DKPNConfig", how: "Options", device: str) -> None:
    from dkpn.commands.common import usable_device
    from dkpn.tiles import tile_side

    try:
        tile_side(config, how.max_memory, usable_device(device))
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('max_memory', 'max-memory', 1)}") from None


def _one_line(job: "Job", error: BaseException) -> str:
    """What went wrong, with the file that it went wrong with, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    if isinstance(error, MemoryError) and not str(error):
        text = "too large for this machine's memory; make it smaller"
    named = any(str(path) in text for path in (job.photo, job.output, job.preview) if path)
    return text if named else f"{job.photo}: {text}"


class _Report:
    """Collects results for the page; pictures are reduced at once, so that few bytes are kept."""

    def __init__(self, model: "DKPN", path: Path | None, white_nits: float) -> None:
        self.model, self.path, self.white_nits = model, path, white_nits
        self.views: list[View] = []

    def add(self, job: "Job", photo: "Photo", result: "np.ndarray") -> None:
        """Keep a photo and its result."""
        from dkpn.viewer import View, look_inside, reduced_view

        insight = look_inside(self.model, photo.pixels)
        self.views.append(reduced_view(View(job.output.stem, result, photo.pixels, insight)))

    def write(self) -> bool:
        """Write the page, if there is one to write; whether that went well."""
        from dkpn.viewer import write_page

        if self.path is None or not self.views:
            return True
        try:
            write_page(self.path, self.views, self.white_nits)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            text = f"dkpn reconstruct: {self.path}: cannot be written ({reason})"
            print(text, file=sys.stderr)
            return False
        show(str(self.path))
        return True
