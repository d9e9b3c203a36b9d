"""What is no photo, or a bad one: each case a one-line error that names the file and the cure."""

import errno
import io
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dkpn.photos import photo_paths, read_photo
from tests.bad_photos import DAMAGED, DEEP, PHOTO, REFUSED, heic, imagecodecs, saved, sized, tiff

Image = pytest.importorskip("PIL.Image", reason="decodes JPEG files")


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged TIFF files
def test_what_is_no_photo_is_refused(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*{message}") as caught:
        read_photo(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "16 bits"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged TIFF files
def test_truncated_photos_are_refused(tmp_path, kind, kept):
    data = DEEP if kind == "16 bits" else saved(kind)
    (tmp_path / "photo.x").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=rf"photo\.x: an? \w+ file, {DAMAGED}") as caught:
        read_photo(tmp_path / "photo.x")
    assert "\n" not in str(caught.value)


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIC"])
def test_too_many_pixels_are_refused_before_anything_is_decoded(tmp_path, kind):
    side = 16000
    if kind == "HEIC":
        data = heic(side, side)
    elif kind == "TIFF":
        data = tiff({256: (side,), 257: (side,), 262: (2,)})
    else:
        data = sized(kind, side, side)
    (tmp_path / "photo").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"photo: 16000 x 16000 pixels are more than .*max-pixels"):
        read_photo(tmp_path / "photo", max_pixels=200_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_the_limit_itself_is_allowed(tmp_path):
    (tmp_path / "photo.png").write_bytes(saved("PNG"))
    assert read_photo(tmp_path / "photo.png", max_pixels=64 * 64).pixels.shape == PHOTO.shape
    with pytest.raises(ValueError, match="64 x 64 pixels are more than the 4095 allowed"):
        read_photo(tmp_path / "photo.png", max_pixels=64 * 64 - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_pillows_own_limit_does_not_interfere(tmp_path, kind, monkeypatch):
    (tmp_path / "photo").write_bytes(saved(kind))
    expected = read_photo(tmp_path / "photo").pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # twice that is an error, once a warning
    assert np.array_equal(read_photo(tmp_path / "photo").pixels, expected)
    assert Image.MAX_IMAGE_PIXELS == 1000


# --- files --------------------------------------------------------------------------------------


def test_names_that_lead_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^.*absent\.jpg: no such file$"):
        read_photo(tmp_path / "absent.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "absent.jpg")
    with pytest.raises(FileNotFoundError, match=r"link\.jpg: no such file"):
        read_photo(tmp_path / "link.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(ValueError, match=r"loop\.jpg: cannot be read"):
        read_photo(tmp_path / "loop.jpg")
    (tmp_path / "photo.jpg").mkdir()
    with pytest.raises(ValueError, match=r"photo\.jpg: is a folder, expected a photo"):
        read_photo(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match=": cannot be read"):
        read_photo(tmp_path / ("x" * 5000))
    with pytest.raises(ValueError, match="embedded null byte"):
        read_photo("a\0b.jpg")


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.EACCES, PermissionError, r"a\.jpg: may not be read; change its permissions"),
        (errno.EIO, ValueError, r"a\.jpg: cannot be read \(Input/output error\)"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, monkeypatch, number, error, message):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number), "a.jpg")

    (tmp_path / "a.jpg").write_bytes(saved("JPEG"))
    monkeypatch.setattr(Path, "open", refuse)  # not chmod: root may read everything
    with pytest.raises(error, match=message):
        read_photo(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("content", "terminal", "message"),
    [
        (b"", False, "standard input: is empty"),
        (b"text", False, "standard input: not a photo"),
        (saved("JPEG")[:500], False, "standard input: a JPEG file, truncated"),
        (b"", True, "standard input: nothing is piped in"),
    ],
)
def test_bad_standard_input(monkeypatch, content, terminal, message):
    class Stream(io.BytesIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Stream(content)))
    with pytest.raises(ValueError, match=message):
        read_photo("-")


def test_missing_codecs_say_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(saved("PNG"))
    (tmp_path / "a.heic").write_bytes(heic(8, 8))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ModuleNotFoundError, match=r'a\.png: imagecodecs .*"kpnops\[dkpn\]"'):
        read_photo(tmp_path / "a.png")
    with pytest.raises(ModuleNotFoundError, match=r"a\.heic: pillow_heif .*install pillow-heif"):
        read_photo(tmp_path / "a.heic")


def test_a_picture_too_large_for_memory_is_named(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError

    (tmp_path / "a.png").write_bytes(saved("PNG"))
    monkeypatch.setattr(imagecodecs, "png_decode", fail)
    with pytest.raises(MemoryError, match=r"a\.png: too large for this machine"):
        read_photo(tmp_path / "a.png")


# --- what a user names --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "c.NEF", "notes.txt", ".hidden.jpg", "in/d.jpg", "[x].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([""], ["[x].png", "a.png", "b.JPG"]),
        (["b.JPG", ""], ["b.JPG", "[x].png", "a.png"]),
        (["in"], ["in/d.jpg"]),
        (["*.png"], ["[x].png", "a.png"]),
        (["[ab].*"], ["a.png", "b.JPG"]),
        (["[x].png"], ["[x].png"]),
        (["**/*.jpg"], ["in/d.jpg"]),
        (["*"], ["[x].png", "a.png", "b.JPG", "c.NEF", "notes.txt"]),
        (["notes.txt", "absent.jpg"], ["notes.txt", "absent.jpg"]),
        (["a.png", "in/../a.png"], ["a.png"]),
    ],
)
def test_files_folders_and_patterns(folder, arguments, expected):
    found = photo_paths([folder / argument for argument in arguments])
    assert found == [folder / name for name in expected]


def test_standard_input_is_kept_as_it_is():
    assert photo_paths(["-", "x.jpg", "-"]) == [Path("-"), Path("x.jpg")]


def test_folders_and_patterns_without_photos(folder):
    (folder / "empty").mkdir()
    (folder / "raw").mkdir()
    (folder / "raw" / "a.dng").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty: a folder without a photo .*name the folder"):
        photo_paths([folder / "empty"])
    with pytest.raises(ValueError, match=r"raw: a folder without a photo .*develop its 1 camera"):
        photo_paths([folder / "raw"])
    with pytest.raises(FileNotFoundError, match=r"\*\.gif: matches no file"):
        photo_paths([folder / "*.gif"])
