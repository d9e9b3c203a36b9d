"""Results that cannot be written: what is said, and that nothing half-written is left."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from dkpn.outputs import OUTPUT_SUFFIXES, output_suffix, write_result

pytest.importorskip("imagecodecs", reason="the codec of most formats")
open_exr = pytest.importorskip("OpenEXR", reason="the codec of .exr files")

FULL_DEVICE = Path("/dev/full")


def image_of_light(shape: tuple[int, int] = (24, 40)) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 8, (*shape, 3)).astype(np.float32)


def wrong(value: float) -> np.ndarray:
    image = image_of_light()
    image[1, 2, 0] = value
    return image


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "got 1 NaN and 0 inf"),
        (np.inf, "got 0 NaN and 1 inf"),
        (-np.inf, "got 0 NaN and 1 inf"),
    ],
)
def test_values_that_are_no_light(tmp_path, suffix, value, message):
    with pytest.raises(ValueError, match=rf"a\.\w+: image: expected finite values, {message}"):
        write_result(tmp_path / f"a{suffix}", wrong(value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (np.ones((4, 4)), ValueError, r"image: expected shape \(H, W, 3\), got \(4, 4\)"),
        (np.ones((4, 4, 4)), ValueError, r"got \(4, 4, 4\)"),
        (np.ones((0, 4, 3)), ValueError, r"got \(0, 4, 3\)"),
        (np.ones((4, 4, 3), np.uint8), TypeError, "image: expected a floating-point array, got ui"),
        (torch.ones(4, 4, 3), TypeError, "image: expected a numpy array, got Tensor"),
    ],
)
def test_arrays_that_are_no_image(tmp_path, image, kind, message):
    with pytest.raises(kind, match=message):
        write_result(tmp_path / "a.exr", image)


@pytest.mark.parametrize("white_nits", [0.0, -1.0, 10001.0, float("nan")])
def test_white_that_is_none(tmp_path, white_nits):
    with pytest.raises(ValueError, match=r"white_nits: expected cd/m² above 0 and at most 10000"):
        write_result(tmp_path / "a.png", image_of_light(), white_nits=white_nits)


@pytest.mark.parametrize("name", ["a.gif", "a", "a.exr.zip", ".exr"])
def test_unknown_suffix_names_the_known_ones(tmp_path, name):
    message = r"the suffix chooses the format: \.exr, \.hdr, \.tif, .*, \.jpeg; got "
    with pytest.raises(ValueError, match=message):
        write_result(tmp_path / name, image_of_light())
    assert output_suffix("A.JPEG") == ".jpeg"


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_folders_that_are_not_there_or_in_the_way(tmp_path, suffix):
    with pytest.raises(
        FileNotFoundError, match=r"no/a\..*: the folder .*no does not exist; create"
    ):
        write_result(tmp_path / "no" / f"a{suffix}", image_of_light())
    (tmp_path / f"b{suffix}").mkdir()
    with pytest.raises(IsADirectoryError, match="a folder of that name exists"):
        write_result(tmp_path / f"b{suffix}", image_of_light())


@pytest.mark.parametrize(
    "suffix", [s for s in OUTPUT_SUFFIXES if s not in (".jpg", ".jpeg", ".png")]
)
def test_codec_that_is_not_installed(tmp_path, monkeypatch, suffix):
    module = {".exr": "OpenEXR", ".tif": "tifffile", ".tiff": "tifffile"}.get(suffix, "imagecodecs")
    monkeypatch.setitem(sys.modules, module, None)
    message = (
        rf'a\.\w+: {module} is needed for it and is not installed: pip install "kpnops\[dkpn\]"'
    )
    with pytest.raises(ModuleNotFoundError, match=message):
        write_result(tmp_path / f"a{suffix}", image_of_light())
    assert list(tmp_path.iterdir()) == []


def test_value_beyond_radiance(tmp_path):
    with pytest.raises(ValueError, match=r"a\.hdr: image: Radiance RGBE ends at"):
        write_result(tmp_path / "a.hdr", np.full((2, 2, 3), 1e39))


def test_avif_too_wide(tmp_path):
    with pytest.raises(ValueError, match=r"a\.avif: image: an AVIF ends at 65536 pixels a side"):
        write_result(tmp_path / "a.avif", np.ones((1, 65537, 3), np.float32))


@pytest.mark.skipif(
    os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="needs a user whom permissions bind",
)
@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_folder_that_may_not_be_written(tmp_path, suffix):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"a\.\w+: Permission denied; choose a folder"):
        write_result(tmp_path / f"a{suffix}", image_of_light())
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.EACCES, PermissionError, "Permission denied; choose a folder that you may write to"),
        (errno.ENOSPC, OSError, "No space left on device; nothing was left behind: make room"),
        (errno.EIO, OSError, r"cannot be written \(Input/output error\)"),
    ],
)
def test_errors_of_the_system_name_the_file_and_the_cure(
    tmp_path, monkeypatch, code, kind, message
):
    def fail(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(code, os.strerror(code), str(path))

    path = tmp_path / "a.avif"
    path.write_bytes(b"the old one")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(kind, match=message) as caught:
        write_result(path, image_of_light())
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.errno == code
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("shape", [(1, 1), (200, 300)], ids=["buffered", "large"])
def test_full_disk_leaves_what_was_there(tmp_path, suffix, shape):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"the old one")
    # The name that the file is written under, next to its final one.
    temporary = f".a-{os.getpid()}-{threading.get_ident()}{suffix}"
    (tmp_path / temporary).symlink_to(FULL_DEVICE)
    with pytest.raises(OSError, match=f"{path}: .*; nothing was left behind: make room") as caught:
        write_result(path, image_of_light(shape))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_exr_that_lost_its_end_is_noticed(tmp_path, monkeypatch):
    # What OpenEXR leaves where the disk gets full with the last buffer: no error, and zeros.
    write = open_exr.File.write

    def lossy(file: object, name: str) -> None:
        write(file, name)
        os.truncate(name, Path(name).stat().st_size - 100)

    monkeypatch.setattr(open_exr.File, "write", lossy)
    with pytest.raises(OSError, match=r"a\.exr: the file came out incomplete, as on a full disk"):
        write_result(tmp_path / "a.exr", image_of_light())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.avif"
    path.write_bytes(b"the old one")
    program = f"""
import os, signal
from pathlib import Path
import numpy as np
from dkpn.outputs import write_result
def killed(path, data):
    with path.open("wb", buffering=0) as file:
        file.write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
Path.write_bytes = killed
write_result({str(path)!r}, np.ones((50, 50, 3)))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"the old one"
