"""Photo files to HDR files: what to write where, and the batch that does it.

While the network works on one photo the next one is decoded and the last one encoded. A photo that
fails is reported, and the batch goes on.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from dkpn.color import tone_mapping
from dkpn.hdr_io import write_png
from dkpn.infer import image_planes
from dkpn.model import DKPN
from dkpn.outputs import OUTPUT_SUFFIXES, encoding_bytes, output_suffix, write_result
from dkpn.photos.reading import STANDARD_INPUT, Photo, read_photo
from dkpn.resources import available_memory
from dkpn.strips import row_strips, scratch_array
from dkpn.tiles import Tile, reconstruct_tiles, tile_side

MAX_PIXELS = 500_000_000
_PREVIEW_SIDE = 4096  # pixels, of the tone-mapped preview
_EXPOSURE_SIDE = 1024  # pixels, at most, that its exposure is chosen by


@dataclass(frozen=True)
class Job:
    """One photo and the files that it becomes.

    Args:
        photo: the file to read; ``-`` is standard input.
        output: the file to write; its suffix chooses the format.
        preview: the tone-mapped PNG to write, if any.
    """

    photo: Path
    output: Path
    preview: Path | None


@dataclass(frozen=True)
class Options:
    """How photos are reconstructed and written.

    Args:
        white_nits: cd/m² of 1.0 in outputs with absolute light.
        panorama: whether the left and right edge of the photos meet.
        max_memory: GiB that the network may take; by default half of what is free.
        max_pixels: a photo with more is refused before it is decoded.
    """

    white_nits: float = 203.0
    panorama: bool = False
    max_memory: float | None = None
    max_pixels: int = MAX_PIXELS


def plan_jobs(
    photos: Sequence[Path],
    output: Path,
    *,
    suffix: str = ".exr",
    preview: bool = True,
    overwrite: bool = False,
    skip_existing: bool = False,
) -> tuple[list[Job], int]:
    """Decide which files to write, before anything is read or written.

    Args:
        photos: files to read, from :func:`dkpn.photos.reading.photo_paths`.
        output: with a suffix: the file for a single photo. Without one: the folder that receives
            ``<stem><suffix>`` of each photo.
        suffix: format of the files in a folder.
        preview: whether ``<stem>_preview.png`` lies beside.
        overwrite: let outputs replace files that exist; never one of ``photos``.
        skip_existing: leave out photos whose output exists.

    Returns:
        One job for each photo to reconstruct, same order, and the number of photos left out.

    Raises:
        ValueError: unknown suffix, a file for several photos, a folder where a file is or the
            reverse, photos that would become the same file, or an output that is one of the photos.
        FileNotFoundError: the folder of an output file does not exist.
        FileExistsError: an output exists, and neither ``overwrite`` nor ``skip_existing`` is set.
    """
    if output.suffix and not output.is_dir():
        jobs = [_single_file(photos, output, preview)]
    else:
        jobs = _files_in_folder(photos, output, suffix, preview)
    inputs = {os.path.realpath(photo) for photo in photos}
    chosen = []
    for job in jobs:
        targets = [job.output] if job.preview is None else [job.output, job.preview]
        for target in targets:
            if os.path.realpath(target) in inputs:
                raise ValueError(
                    f"{target}: this output would overwrite one of the photos; "
                    "choose another output folder or name"
                )
            if target.is_dir():
                raise ValueError(f"{target}: is a folder, expected a file to write")
        if skip_existing and job.output.exists():
            continue
        for target in targets:
            if target.exists() and not overwrite and not skip_existing:
                raise FileExistsError(
                    f"{target}: exists already; allow that with --overwrite, or leave such photos "
                    "out with --skip-existing"
                )
        chosen.append(job)
    return chosen, len(jobs) - len(chosen)


def _single_file(photos: Sequence[Path], output: Path, preview: bool) -> Job:
    output_suffix(output)
    if len(photos) != 1:
        raise ValueError(
            f"{output}: one file cannot hold {len(photos)} photos; "
            "give a folder, which is a name without suffix"
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"{output}: the folder {output.parent} does not exist; create it first"
        )
    beside = output.with_name(f"{output.stem}_preview.png") if preview else None
    return Job(photos[0], output, beside)


def _files_in_folder(photos: Sequence[Path], output: Path, suffix: str, preview: bool) -> list[Job]:
    if suffix not in OUTPUT_SUFFIXES:
        raise ValueError(f"format: expected one of {', '.join(OUTPUT_SUFFIXES)}, got {suffix!r}")
    if output.exists() and not output.is_dir():
        raise ValueError(
            f"{output}: is a file, expected a folder; a file to write ends in {suffix}"
        )
    jobs, outputs = [], {}
    for photo in photos:
        stem = "stdin" if str(photo) == STANDARD_INPUT else photo.stem
        target = output / f"{stem}{suffix}"
        # Many file systems hold "A.exr" and "a.exr" for the same file.
        other = outputs.setdefault(str(target).casefold(), photo)
        if other is not photo:
            raise ValueError(
                f"{other} and {photo}: both would become {target.name}; "
                "reconstruct them into two folders"
            )
        jobs.append(Job(photo, target, output / f"{stem}_preview.png" if preview else None))
    return jobs


def reconstruct_jobs(
    model: DKPN,
    jobs: Sequence[Job],
    options: Options,
    *,
    progress: Callable[[Job, float], object] | None = None,
    keep: Callable[[Job, Photo, np.ndarray], object] | None = None,
) -> Iterator[tuple[Job, Exception | None]]:
    """Reconstruct photos one after the other, with decoding and encoding beside the network.

    Args:
        model: the network.
        jobs: from :func:`plan_jobs`; folders exist.
        options: how.
        progress: called with the job and the share of its photo that the network has done.
        keep: called with each photo and its result before they are let go.

    Yields:
        Each job when it is finished, in order, and what went wrong with it, if anything; what was
        there before is then intact, and nothing of the new file is left.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading = _read_ahead(reader, jobs, 0, options)
        writing: tuple[Job, Future[None]] | None = None
        for index, job in enumerate(jobs):
            current, reading = reading, None
            encoding: Future[None] | None = None
            failure: Exception | None = None
            try:
                assert current is not None
                photo = current.result()
                _check_room(job, photo)
                reading = _read_ahead(reader, jobs, index + 1, options)
                report = None if progress is None else _bound(progress, job)
                result = reconstruct_photo(model, photo, options, report)
                encoding = writer.submit(_finish, job, photo, result, options, keep)
                del photo, result
            except Exception as error:  # whatever a file does to a codec, the batch goes on
                failure = error
            if reading is None:
                reading = _read_ahead(reader, jobs, index + 1, options)
            # The file before this one has been written meanwhile.
            if writing is not None:
                yield writing[0], writing[1].exception()  # pyright: ignore[reportReturnType]
                writing = None
            if encoding is None:
                yield job, failure
            else:
                writing = (job, encoding)
        if writing is not None:
            yield writing[0], writing[1].exception()  # pyright: ignore[reportReturnType]


def _check_room(job: Job, photo: Photo) -> None:
    """Refuse what could not be encoded, before the network has worked for it."""
    height, width = photo.pixels.shape[:2]
    needed, free = encoding_bytes(job.output, height * width), available_memory()
    if needed > free:  # never where the system does not say
        raise MemoryError(
            f"{job.output}: to encode {width} x {height} pixels takes about {needed / 2**30:.1f} "
            f"GiB of memory, and {free / 2**30:.1f} are free; write .exr, .hdr or .tif, which "
            "take next to none"
        )


def _read_ahead(
    reader: ThreadPoolExecutor, jobs: Sequence[Job], index: int, options: Options
) -> "Future[Photo] | None":
    if index >= len(jobs):
        return None
    return reader.submit(read_photo, jobs[index].photo, max_pixels=options.max_pixels)


def _bound(progress: Callable[[Job, float], object], job: Job) -> Callable[[float], object]:
    return lambda share: progress(job, share)


@torch.no_grad()
def reconstruct_photo(
    model: DKPN,
    photo: Photo,
    options: Options,
    progress: Callable[[float], object] | None = None,
) -> np.ndarray:
    """Reconstruct one photo; a large result lies in a temporary file, not in memory.

    Args:
        model: the network.
        photo: from :func:`dkpn.photos.reading.read_photo`.
        options: how.
        progress: called with the share that is done.

    Returns:
        (H, W, 3) float32, linear Rec.709, 1.0 = the photo's clip level.

    Raises:
        ValueError: the network's result is not finite, or ``max_memory`` is too little.
    """
    device = next(model.parameters()).device
    planes = image_planes(photo.pixels)[0]
    result = scratch_array((*photo.pixels.shape[:2], 3), np.float32)

    def store(tile: Tile, core: torch.Tensor) -> None:
        if not torch.isfinite(core).all():
            raise ValueError("the result holds NaN or infinity; these weights are not usable")
        part = rearrange(core, "c h w -> h w c").cpu().numpy()
        result[tile.top : tile.bottom, tile.left : tile.right] = part

    side = tile_side(model.config, options.max_memory, device)
    reconstruct_tiles(model, planes, store, side=side, panorama=options.panorama, progress=progress)
    return result


def _finish(
    job: Job,
    photo: Photo,
    result: np.ndarray,
    options: Options,
    keep: Callable[[Job, Photo, np.ndarray], object] | None,
) -> None:
    write_result(job.output, result, photo=photo, white_nits=options.white_nits)
    if job.preview is not None:
        with _naming(job.preview):
            write_png(job.preview, preview(result))
    if keep is not None:
        keep(job, photo, result)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{path}: cannot be written ({error.strerror or error})"
        raise OSError(error.errno, message) from error


def preview(image: np.ndarray) -> np.ndarray:
    """Tone-map an HDR image, (H, W, 3) float32 linear, to uint8 sRGB for an ordinary screen.

    Of a large image every n-th pixel is shown, at most 4,096 along a side.
    """
    step = -(-max(image.shape[:2]) // _PREVIEW_SIDE)
    small = image[::step, ::step]
    # The exposure of a thousand rows and columns is that of all.
    thin = tuple(slice(None, None, -(-size // _EXPOSURE_SIDE)) for size in small.shape[:2])
    render = tone_mapping(_planes(small[thin]))
    shown = np.empty(small.shape, np.uint8)
    for strip in row_strips(small):
        codes = (render(_planes(small[strip])) * 255.0).round().byte()
        shown[strip] = rearrange(codes, "c h w -> h w c").numpy()
    return shown


def _planes(image: np.ndarray) -> torch.Tensor:
    return rearrange(torch.from_numpy(np.ascontiguousarray(image)), "h w c -> c h w")
