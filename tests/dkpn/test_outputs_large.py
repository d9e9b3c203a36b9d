"""Large results: written in strips, without copies in memory, and where there is no room."""

import errno
import os
import tracemalloc

import numpy as np
import pytest

from dkpn import strips
from dkpn.hdr_io import read_hdr
from dkpn.outputs import write_result
from dkpn.outputs.stills import pq_codes
from dkpn.reconstruct import preview
from dkpn.strips import as_stored, row_strips, scratch_array

imagecodecs = pytest.importorskip("imagecodecs", reason="the codec of most formats")
pytest.importorskip("OpenEXR", reason="the codec of .exr files")
pytest.importorskip("tifffile", reason="the codec of .tif files")

WHITE_NITS = 203.0


def powers_of_two(height: int, width: int) -> np.ndarray:
    """What half floats and RGBE hold exactly."""
    light = np.exp2(np.random.default_rng(0).integers(-8, 8, (height, width, 1)))
    return (light * [1.0, 0.5, 0.25]).astype(np.float32)


def test_strips_cover_every_row_once():
    for height, width in ((1, 1), (1500, 400), (3, 1_000_000), (700_000, 1)):
        image = np.broadcast_to(np.float32(0), (height, width, 3))
        parts = list(row_strips(image))
        assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
        assert (parts[0].start, parts[-1].stop) == (0, height)
        assert all(image[part].size <= max(1 << 20, 3 * width) for part in parts)


@pytest.mark.parametrize("suffix", [".exr", ".hdr", ".tif", ".png"])
def test_images_of_several_strips_are_whole(tmp_path, suffix):
    image = powers_of_two(1500, 400)
    assert len(list(row_strips(image))) == 2
    path = tmp_path / f"a{suffix}"
    write_result(path, image)
    if suffix == ".png":
        lines = [pq_codes(image[row : row + 1], WHITE_NITS, 16) for row in range(len(image))]
        assert np.array_equal(imagecodecs.png_decode(path.read_bytes()), np.concatenate(lines))
    elif suffix == ".tif":
        assert np.array_equal(imagecodecs.tiff_decode(path.read_bytes()), image)
    else:
        assert np.array_equal(read_hdr(path), image)


@pytest.mark.parametrize("shape", [(1000, 9), (5000, 8), (200, 130)], ids=str)
def test_noise_in_short_rows_fits_into_hdr(tmp_path, shape):
    # Runs of length one make the file larger than its pixels; the codec's own room is too small.
    noise = np.random.default_rng(0).random((*shape, 3), np.float32) ** 8
    write_result(tmp_path / "a.hdr", noise)
    step = noise.max(axis=2, keepdims=True) / 255.5
    assert (np.abs(read_hdr(tmp_path / "a.hdr") - noise) <= step).all()


@pytest.mark.parametrize("suffix", [".exr", ".hdr", ".tif", ".png"])
def test_large_images_are_not_copied(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(strips, "_IN_MEMORY", 0)
    monkeypatch.setattr(strips, "_STRIP_VALUES", 1 << 17)
    image = powers_of_two(4000, 500)
    tracemalloc.start()
    write_result(tmp_path / f"a{suffix}", image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The rounding to RGBE holds a few float64 copies of a strip; the image is 46 strips.
    assert peak <= 0.5 * image.nbytes


def test_the_preview_of_a_large_image_is_not_copied():
    image = powers_of_two(4000, 1000)
    tracemalloc.start()
    shown = preview(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shown.shape == image.shape
    assert peak <= shown.nbytes + 0.5 * image.nbytes


def test_large_arrays_lie_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(strips, "_IN_MEMORY", 100)
    image = powers_of_two(9, 7)
    stored = as_stored(image, np.float16)
    assert isinstance(stored, np.memmap)
    assert np.array_equal(stored, image)
    assert as_stored(image, np.float32) is image
    assert not isinstance(scratch_array((5, 5), np.float32), np.memmap)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs files of a fixed size")
def test_no_room_for_a_large_array_is_an_error_with_a_cure(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room for 1\.2 GB; make room, or .* TMPDIR") as caught:
        scratch_array((10_000, 10_000, 3), np.float32)
    assert caught.value.errno == errno.ENOSPC
