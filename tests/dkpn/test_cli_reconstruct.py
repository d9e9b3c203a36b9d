import errno
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import kpnops
from dkpn import DKPN, DKPNConfig, cli, reconstruct
from dkpn.checkpoint import save_weights
from dkpn.hdr_io import read_hdr, write_hdr, write_png
from dkpn.photos import read_photo
from tests.bad_photos import REFUSED, saved

pytest.importorskip("OpenEXR", reason="the command writes EXR files")

TINY = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    return save_weights(tmp_path_factory.mktemp("weights"), DKPN(TINY)).parent


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "bird.png"
    path.parent.mkdir()
    write_png(path, codes())
    return path


def codes(height=9, width=7):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(*words):
    return cli.main([str(word) for word in words])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".exr", ".hdr", ".tif", ".png", ".avif", ".jpg"])
def test_a_file_is_written_where_it_is_named(photo, weights, tmp_path, suffix, capsys):
    out = tmp_path / f"result{suffix}"
    assert run("reconstruct", photo, "-o", out, "--weights", weights) == 0
    assert names(tmp_path) == sorted(["photos", f"result{suffix}", "result_preview.png"])
    assert str(out) in capsys.readouterr().out
    if suffix in (".exr", ".hdr"):
        values = read_hdr(out)
        assert values.shape == (9, 7, 3)
        assert np.isfinite(values).all()


def test_shipped_weights_are_the_default(photo, tmp_path):
    out = tmp_path / "result.exr"
    assert run("reconstruct", photo, "-o", out, "--device", "cpu", "--no-preview") == 0
    assert names(tmp_path) == ["photos", "result.exr"]
    network = __import__("dkpn").load(device="cpu")
    np.testing.assert_allclose(
        read_hdr(out), network.infer(codes()), rtol=2**-10, atol=1e-6
    )  # half floats


def test_folders_and_patterns_become_folders(photo, weights, tmp_path):
    write_png(photo.with_name("cat.png"), codes(4, 5))
    for source in (photo.parent, photo.parent / "*.png"):
        out = tmp_path / "new" / f"out{source.name.strip('*.')}"
        words = ("--format", "avif", "--no-preview", "--weights", weights)
        assert run("reconstruct", source, "-o", out, *words) == 0
        assert names(out) == ["bird.avif", "cat.avif"]


def test_standard_input(photo, weights, tmp_path, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(photo.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert run("reconstruct", "-", "-o", tmp_path / "r.exr", "--weights", weights) == 0
    assert read_hdr(tmp_path / "r.exr").shape == (9, 7, 3)


def test_existing_results_stay_unless_overwrite_is_given(photo, weights, tmp_path, capsys):
    out = tmp_path / "result.exr"
    out.write_text("precious")
    words = ("reconstruct", photo, "-o", out, "--weights", weights)
    assert run(*words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert run(*words, "--skip-existing") == 0
    assert "1 of 1 photos left out" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert run(*words, "--overwrite", "--skip-existing") == 2
    assert run(*words, "--overwrite") == 0
    assert read_hdr(out).shape == (9, 7, 3)


def test_report_shows_every_photo(photo, weights, tmp_path, capsys):
    write_png(photo.with_name("cat.png"), codes(4, 5))
    page = tmp_path / "page.html"
    words = ("--weights", weights, "--report", page)
    assert run("reconstruct", photo.parent, "-o", tmp_path / "out", *words) == 0
    text = page.read_text(encoding="utf-8")
    assert '"name":"bird"' in text
    assert '"name":"cat"' in text
    assert '"filters"' in text
    assert str(page) in capsys.readouterr().out


def test_view_shows_results_that_exist(photo, weights, tmp_path, capsys):
    result, page = tmp_path / "bird.exr", tmp_path / "view.html"
    write_hdr(result, np.ones((9, 7, 3), np.float32))
    assert run("view", result, "-o", page) == 0
    assert '"photo"' not in page.read_text(encoding="utf-8")
    assert run("view", result, "-o", page) == 2
    words = ("--photo", photo, "--weights", weights, "--overwrite")
    assert run("view", result, *words, "-o", page) == 0
    assert '"filters"' in page.read_text(encoding="utf-8")
    write_hdr(tmp_path / "small.exr", np.ones((2, 2, 3), np.float32))
    capsys.readouterr()
    assert run("view", tmp_path / "small.exr", *words, "-o", page) == 1
    assert "bird.png: has 7 x 9 pixels" in capsys.readouterr().err
    for wrong in (("x.txt",), (tmp_path / "no" / "x.html",), (page, "--white-nits", "0")):
        assert run("view", result, "-o", *wrong, "--overwrite") == 2


def test_panorama_and_memory_are_passed_on(photo, weights, tmp_path, capsys):
    words = ("reconstruct", photo, "--weights", weights, "--no-preview", "-o")
    assert run(*words, tmp_path / "flat.hdr") == 0
    assert run(*words, tmp_path / "around.hdr", "--panorama", "--max-memory", "1") == 0
    flat, around = read_hdr(tmp_path / "flat.hdr"), read_hdr(tmp_path / "around.hdr")
    assert np.abs(flat - around).max() > 0
    assert run(*words, tmp_path / "none.hdr", "--max-memory", "1e-5") == 2
    assert "--max-memory: 1e-05 GiB is not enough" in capsys.readouterr().err


# --- what goes wrong: one line that names the file and the cure, the exit code, no traceback -----


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged TIFF files
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_photo_fails_alone_in_one_line(name, weights, tmp_path, capfd):
    bad, good = tmp_path / "in" / name, tmp_path / "in" / "good one.png"
    bad.parent.mkdir()
    bad.write_bytes(REFUSED[name][0])
    write_png(good, codes(2, 3))
    out = tmp_path / "out"
    words = ("--weights", weights, "--device", "cpu", "--no-preview", "-o", out)
    assert run("reconstruct", bad, good, *words) == 1
    assert names(out) == ["good one.exr"]
    written = capfd.readouterr()
    assert "Traceback" not in written.err
    lines = [line for line in written.err.splitlines() if line.startswith("dkpn reconstruct:")]
    assert len(lines) == 2
    assert name in lines[0]
    assert lines[1] == "dkpn reconstruct: 1 of 2 photos failed"


def missing_folder(folder, photo):
    return (photo, "-o", folder / "absent" / "x.exr"), 2, "does not exist; create it first"


def unknown_suffix(folder, photo):
    return (photo, "-o", folder / "x.gif"), 2, "the suffix chooses the format"


def file_as_folder(folder, photo):
    (folder / "taken").write_text("")
    return (photo, "-o", folder / "taken"), 2, "taken: is a file, expected a folder"


def two_photos_in_a_file(folder, photo):
    return (photo, photo.with_name("cat.png"), "-o", folder / "x.exr"), 2, "cannot hold 2 photos"


def equal_stems(folder, photo):
    other = photo.parent / "elsewhere" / photo.name
    return (photo, other, "-o", folder / "out"), 2, "both would become bird.exr"


def output_is_the_photo(folder, photo):
    return (photo, "-o", photo, "--overwrite"), 2, "would overwrite one of the photos"


def no_such_photo(folder, photo):
    return (folder / "gone.jpg", "-o", folder / "x.exr"), 1, "gone.jpg: no such file"


def empty_folder(folder, photo):
    (folder / "empty").mkdir()
    return (folder / "empty", "-o", folder / "out"), 2, "empty: a folder without a photo"


def pattern_without_match(folder, photo):
    return (folder / "*.jpeg", "-o", folder / "out"), 2, "matches no file"


def too_many_pixels(folder, photo):
    words = (photo, "-o", folder / "x.exr", "--max-pixels", "62")
    return words, 1, "bird.png"


def wrong_pixels(folder, photo):
    return (photo, "-o", folder / "x.exr", "--max-pixels", "0"), 2, "--max-pixels 0"


def wrong_white(folder, photo):
    return (photo, "-o", folder / "x.exr", "--white-nits", "-1"), 2, "--white-nits -1"


def wrong_memory(folder, photo):
    return (photo, "-o", folder / "x.exr", "--max-memory", "0"), 2, "--max-memory 0"


def wrong_report(folder, photo):
    return (photo, "-o", folder / "x.exr", "--report", folder / "r.txt"), 2, "ends in .html"


def report_nowhere(folder, photo):
    words = (photo, "-o", folder / "x.exr", "--report", folder / "no" / "r.html")
    return words, 2, "does not exist"


def wrong_device(folder, photo):
    return (photo, "-o", folder / "x.exr", "--device", "toaster"), 2, "--device toaster"


def no_weights(folder, photo):
    return (photo, "-o", folder / "x.exr", "--weights", folder / "no"), 2, "no such file"


def truncated_weights(folder, photo):
    (folder / "w.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    words = (photo, "-o", folder / "x.exr", "--weights", folder / "w.safetensors")
    return words, 2, "not a complete safetensors file"


def foreign_weights(folder, photo):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, folder / "w.safetensors")
    words = (photo, "-o", folder / "x.exr", "--weights", folder / "w.safetensors")
    return words, 2, "no network configuration"


def weights_of_another_architecture(folder, photo):
    torch.manual_seed(0)
    save_weights(folder / "w", DKPN(TINY))
    other = save_weights(folder / "other", DKPN(DKPNConfig(width=8, pooled_width=4)))
    (folder / "w" / "model.safetensors").write_bytes(other.read_bytes())
    return (photo, "-o", folder / "x.exr", "--weights", folder / "w"), 2, "differ in"


def pickled(name, content=None):
    def pickled_weights(folder, photo):
        if content is None:
            torch.save({"a": torch.zeros(2)}, folder / name)
        else:
            (folder / name).write_bytes(content)
        words = (photo, "-o", folder / "x.exr", "--weights", folder / name)
        return words, 2, f"{name}: not a safetensors file, and no pickle is loaded"

    pickled_weights.__name__ = name
    return pickled_weights


WRONG = [
    missing_folder,
    unknown_suffix,
    file_as_folder,
    two_photos_in_a_file,
    equal_stems,
    output_is_the_photo,
    no_such_photo,
    empty_folder,
    pattern_without_match,
    too_many_pixels,
    wrong_pixels,
    wrong_white,
    wrong_memory,
    wrong_report,
    report_nowhere,
    wrong_device,
    no_weights,
    truncated_weights,
    foreign_weights,
    weights_of_another_architecture,
    *(pickled(f"w{suffix}") for suffix in (".pth", ".PT", ".ckpt", ".bin", ".safetensors", "")),
    pickled("old.safetensors", pickle.dumps({"a": 1}, protocol=2)),
    pickled("empty.pth", b""),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.__name__)
def test_wrong_use_says_so_in_one_line_and_writes_nothing(case, photo, weights, tmp_path, capfd):
    folder = tmp_path / "work"
    folder.mkdir()
    words, code, message = case(folder, photo)
    before = sorted(folder.rglob("*"))
    if "--weights" not in words:
        words = (*words, "--weights", weights)
    assert run("reconstruct", *words) == code
    written = capfd.readouterr()
    assert "Traceback" not in written.err
    lines = [line for line in written.err.splitlines() if "dkpn reconstruct:" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "no space left"), (errno.EACCES, "permi"), (errno.EIO, "error")],
)
@pytest.mark.parametrize("suffix", [".exr", ".jpg", ".avif"])
def test_a_file_that_cannot_be_written_leaves_nothing(
    photo, weights, tmp_path, capfd, monkeypatch, number, message, suffix
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    out = tmp_path / f"r{suffix}"
    assert run("reconstruct", photo, "-o", out, "--weights", weights) == 1
    error = capfd.readouterr().err
    assert f"r{suffix}" in error
    assert message in error.lower()
    assert "Traceback" not in error
    assert names(tmp_path) == ["photos"]


def test_debug_shows_where_an_error_comes_from(weights, tmp_path, capfd):
    (tmp_path / "a.jpg").write_bytes(saved("JPEG")[:200])
    words = ("reconstruct", tmp_path / "a.jpg", "-o", tmp_path / "r.exr", "--weights", weights)
    assert run(*words) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert run(*words, "--debug") == 1
    assert "Traceback" in capfd.readouterr().err


def test_warnings_are_one_line(weights, tmp_path, capfd):
    from PIL import Image

    Image.fromarray(codes()).save(tmp_path / "a.png", icc_profile=b"no profile at all")
    out = tmp_path / "r.exr"
    assert run("reconstruct", tmp_path / "a.png", "-o", out, "--weights", weights) == 0
    lines = capfd.readouterr().err.strip().splitlines()
    warned = [line for line in lines if "profile" in line]
    assert len(warned) == 1
    assert warned[0].startswith("dkpn reconstruct: ")
    assert "a.png" in warned[0]
    assert read_photo(out.with_name("r_preview.png")).pixels.shape == (9, 7, 3)


def test_an_interrupt_shows_what_is_finished(photo, weights, tmp_path, monkeypatch, capsys):
    for name in ("cat.png", "dog.png"):
        write_png(photo.with_name(name), codes())
    through = reconstruct.reconstruct_photo

    def interrupted(model, picture, options, progress):
        if not interrupted.left:
            raise KeyboardInterrupt
        interrupted.left -= 1
        return through(model, picture, options, progress)

    interrupted.left = 2
    monkeypatch.setattr(reconstruct, "reconstruct_photo", interrupted)
    out, page = tmp_path / "out", tmp_path / "page.html"
    words = ("reconstruct", photo.parent, "-o", out, "--weights", weights)
    assert run(*words, "--report", page) == 130
    captured = capsys.readouterr()
    finished = ["bird.exr", "bird_preview.png", "cat.exr", "cat_preview.png"]
    assert names(out) == finished
    assert all(str(out / name) in captured.out for name in finished)
    assert "dkpn reconstruct: interrupted" in captured.err
    assert page.is_file()
    interrupted.left = 9
    assert run(*words, "--report", tmp_path / "rest.html", "--skip-existing") == 0
    message = "2 of 3 photos left out: their results exist; not in"
    assert message in capsys.readouterr().err
    assert len(names(out)) == 6


def test_a_batch_goes_on_where_the_reader_of_its_output_has_gone(photo, weights, tmp_path):
    for name in ("cat.png", "dog.png"):
        write_png(photo.with_name(name), codes())
    words = ["reconstruct", photo.parent, "-o", tmp_path / "out", "--weights", weights]
    program = f"from dkpn import cli; raise SystemExit(cli.main({[str(word) for word in words]}))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(names(tmp_path / "out")) == 6


def test_the_version_is_that_of_the_package(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"dkpn {kpnops.__version__}\n"


def test_python_runs_the_package_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "dkpn", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"dkpn {kpnops.__version__}\n"


def test_view_takes_folders_and_patterns(tmp_path, capsys):
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("a.exr", "b.hdr"):
        write_hdr(folder / name, np.ones((4, 5, 3), np.float32))
    write_png(folder / "a_preview.png", codes())
    for number, results in enumerate((folder, folder / "*.exr", folder / "?.hdr")):
        page = tmp_path / f"{number}.html"
        assert run("view", results, "-o", page) == 0
        text = page.read_text()
        assert ('"a"' in text, '"b"' in text) == ((True, True), (True, False), (False, True))[
            number
        ]
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", folder / "*.tif"):
        assert run("view", nothing, "-o", tmp_path / "none.html") == 2
        assert f"{nothing}: holds no .hdr or .exr file" in capsys.readouterr().err
