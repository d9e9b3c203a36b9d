"""Photo files to HDR files: what to write where, and the batch that does it.

While the network works on one photo the next one is decoded and the last one encoded. A photo that
fails is reported, and the batch goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from dkpn.color import WHITE_NITS, tone_mapping
from dkpn.hdr_io import write_png
from dkpn.infer import image_planes
from dkpn.jobs import Job
from dkpn.model import DKPN
from dkpn.outputs import encoding_bytes, write_result
from dkpn.photos.reading import Photo, read_photo
from dkpn.resources import available_memory
from dkpn.strips import row_strips, scratch_array
from dkpn.tiles import Tile, reconstruct_tiles, tile_side

MAX_PIXELS = 500_000_000
_PREVIEW_SIDE = 4096  # pixels, of the tone-mapped preview
_EXPOSURE_SIDE = 1024  # pixels, at most, that its exposure is chosen by


@dataclass(frozen=True)
class Options:
    """How photos are reconstructed and written.

    Args:
        white_nits: cd/m² of 1.0 in outputs with absolute light.
        panorama: whether the left and right edge of the photos meet.
        max_memory: GiB that the network may take; by default half of what is free.
        max_pixels: a photo with more is refused before it is decoded.
    """

    white_nits: float = WHITE_NITS
    panorama: bool = False
    max_memory: float | None = None
    max_pixels: int = MAX_PIXELS


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
        jobs: from :func:`dkpn.jobs.plan_jobs`; folders exist.
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
            except KeyboardInterrupt:
                if writing is not None:  # its file is finished nevertheless
                    yield writing[0], writing[1].exception()  # pyright: ignore[reportReturnType]
                raise
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
            f"GiB of memory, and {free / 2**30:.1f} are free; write .exr, .hdr, .tif or .png, "
            "which take next to none"
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
