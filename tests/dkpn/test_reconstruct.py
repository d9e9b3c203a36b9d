import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dkpn import DKPN, DKPNConfig, reconstruct, strips
from dkpn.hdr_io import read_hdr, write_png
from dkpn.jobs import Job, plan_jobs
from dkpn.outputs import encoding_bytes
from dkpn.photos import photo_paths, read_photo
from dkpn.reconstruct import Options, preview, reconstruct_jobs, reconstruct_photo

pytest.importorskip("OpenEXR", reason="writes the results")
pytest.importorskip("imagecodecs", reason="reads the photos")

TINY = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DKPN(TINY).eval()


def codes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def paths(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_a_folder_receives_a_file_and_a_preview_for_each_photo(tmp_path):
    jobs, skipped = plan_jobs(
        paths("a/one.jpg", "b/two.png", "-"), tmp_path / "new", suffix=".avif"
    )
    assert [job.output.name for job in jobs] == ["one.avif", "two.avif", "stdin.avif"]
    assert [job.preview.name for job in jobs if job.preview] == [
        "one_preview.png",
        "two_preview.png",
        "stdin_preview.png",
    ]
    assert skipped == 0
    assert not (tmp_path / "new").exists()
    (job,), _ = plan_jobs(paths("one.jpg"), tmp_path, preview=False)
    assert job.preview is None


@pytest.mark.parametrize("suffix", [".exr", ".hdr", ".EXR", ".jpg", ".tif", ".avif", ".png"])
def test_a_file_receives_one_photo_and_its_preview_lies_beside(tmp_path, suffix):
    (job,), _ = plan_jobs(paths("one.jpg"), tmp_path / f"out{suffix}")
    assert job.output == tmp_path / f"out{suffix}"
    assert job.preview == tmp_path / "out_preview.png"


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path):
    (tmp_path / "file").write_text("")
    for photos, output, error, text in (
        (["a.jpg"], "x.gif", ValueError, r"x\.gif.*\.exr.*\.gif"),
        (["a.jpg", "b.jpg"], "x.exr", ValueError, "2 photos.*folder"),
        (["a.jpg"], "absent/x.exr", FileNotFoundError, "absent does not exist"),
        (["a.jpg"], "file", ValueError, "file: is a file"),
        (["x/a.jpg", "y/a.jpg"], "out", ValueError, r"x.a\.jpg and y.a\.jpg"),
        (["x/a.jpg", "y/A.jpg"], "out", ValueError, r"a\.jpg and .*A\.jpg"),
        (["a.jpg", "a.png", "a_png.jpg"], "out", ValueError, r"a\.png and a_png\.jpg"),
    ):
        with pytest.raises(error, match=text):
            plan_jobs(paths(*photos), tmp_path / output)
    (tmp_path / "a.exr").mkdir()
    with pytest.raises(ValueError, match=r"a\.exr: is a folder, expected a file"):
        plan_jobs(paths("a.jpg"), tmp_path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_never_replaces_a_photo(tmp_path, overwrite):
    photo = tmp_path / "a.jpg"
    other = tmp_path / "a_preview.png"  # where the preview of a.jpg would go
    photo.write_bytes(b"")
    other.write_bytes(b"")
    with pytest.raises(ValueError, match="overwrite one of the photos"):
        plan_jobs([photo, other], tmp_path, overwrite=overwrite)
    with pytest.raises(ValueError, match="overwrite one of the photos"):
        plan_jobs([photo], tmp_path / "a.jpg", overwrite=overwrite)


@pytest.mark.parametrize("name", ["a.exr", "a_preview.png"])
def test_existing_outputs_need_permission(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError, match=rf"{name}.*--overwrite.*--skip-existing"):
        plan_jobs(paths("photos/a.jpg"), tmp_path)
    assert plan_jobs(paths("photos/a.jpg"), tmp_path, overwrite=True)[0]


def test_photos_that_are_done_are_left_out(tmp_path):
    (tmp_path / "a.exr").write_text("done")
    (tmp_path / "b_preview.png").write_text("somebody's own")
    jobs, skipped = plan_jobs(paths("p/a.jpg", "p/b.jpg", "p/c.jpg"), tmp_path, skip_existing=True)
    assert [job.output.name for job in jobs] == ["b.exr", "c.exr"]
    assert [job.preview for job in jobs] == [None, tmp_path / "c_preview.png"]
    assert skipped == 1


def test_photos_that_differ_in_their_suffix_have_it_in_the_name(tmp_path):
    jobs, _ = plan_jobs(paths("a.jpg", "b.jpg", "A.HEIC", "c.png"), tmp_path)
    assert [job.output.name for job in jobs] == ["a_jpg.exr", "b.exr", "A_HEIC.exr", "c.exr"]
    previews = [job.preview.name for job in jobs if job.preview]
    assert previews == [f"{job.output.stem}_preview.png" for job in jobs]


def test_a_preview_and_a_result_are_not_one_file(tmp_path):
    photos = paths("a.jpg", "a_preview.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and a_preview\.jpg: both.*a_preview\.png"):
        plan_jobs(photos, tmp_path, suffix=".png")
    assert len(plan_jobs(photos, tmp_path, suffix=".png", preview=False)[0]) == 2


def test_a_folder_of_photos_can_be_its_own_output_again_and_again(tmp_path):
    for name in ("a.jpg", "b.png", "b.jpg", "c_preview.png"):
        (tmp_path / name).write_bytes(b"")
    photos = photo_paths([tmp_path])
    jobs, _ = plan_jobs(photos, tmp_path)
    for job in jobs:
        for target in job.targets:
            target.write_bytes(b"")
    assert photo_paths([tmp_path]) == photos  # c_preview.png, whose photo is not there, among them
    assert plan_jobs(photos, tmp_path, skip_existing=True) == ([], 4)


def test_a_result_is_not_taken_for_a_photo_in_another_format(tmp_path):
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.png: this output would overwrite one of the photos"):
        plan_jobs(photo_paths([tmp_path]), tmp_path, suffix=".png", skip_existing=True)


def test_results_are_what_infer_gives(model, tmp_path):
    photo = codes(9, 7, 3)
    write_png(tmp_path / "a.png", photo)
    job = Job(tmp_path / "a.png", tmp_path / "o.hdr", tmp_path / "o_preview.png")
    ((done, error),) = reconstruct_jobs(model, [job], Options())
    assert (done, error) == (job, None)
    expected = model.infer(photo)
    # RGBE holds the largest channel of a pixel to 1/256.
    bound = expected.max(axis=2, keepdims=True) / 255
    assert (np.abs(read_hdr(job.output) - expected) <= bound).all()
    shown = read_photo(tmp_path / "o_preview.png").pixels
    np.testing.assert_array_equal(shown, preview(expected))


def test_a_batch_goes_on_past_files_that_fail(model, tmp_path):
    photos = {}
    for name in "abde":
        photos[name] = codes(6, 5, 3, seed=ord(name))
        write_png(tmp_path / f"{name}.png", photos[name])
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    jobs = [Job(tmp_path / f"{n}.png", tmp_path / f"{n}.exr", None) for n in "abcde"]
    (tmp_path / "b.exr").mkdir()  # cannot be written
    kept, shares = [], []
    finished = list(
        reconstruct_jobs(
            model,
            jobs,
            Options(),
            progress=lambda job, share: shares.append((job.photo.stem, share)),
            keep=lambda job, photo, result: kept.append((job.photo.stem, result.shape)),
        )
    )
    assert [job for job, _ in finished] == jobs
    errors = {job.photo.stem: error for job, error in finished}
    assert errors["a"] is None
    assert errors["e"] is None
    assert isinstance(errors["b"], OSError)
    assert isinstance(errors["c"], FileNotFoundError)
    assert isinstance(errors["d"], ValueError)
    assert kept == [("a", (6, 5, 3)), ("e", (6, 5, 3))]
    assert shares == [("a", 1), ("b", 1), ("e", 1)]
    np.testing.assert_allclose(
        read_hdr(tmp_path / "e.exr"), model.infer(photos["e"]), rtol=2**-10, atol=1e-6
    )  # half floats


def test_a_full_disk_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", codes(6, 5, 3))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(reconstruct, "write_png", full)
    job = Job(tmp_path / "a.png", tmp_path / "o.hdr", tmp_path / "o_preview.png")
    ((_, error),) = reconstruct_jobs(model, [job], Options())
    assert isinstance(error, OSError)
    assert "o_preview.png: cannot be written (No space left" in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "o.hdr"]


def test_a_result_that_is_not_finite_is_never_written(tmp_path):
    torch.manual_seed(0)
    broken = DKPN(TINY)
    with torch.no_grad():
        broken.get_parameter("head.convolution.bias").fill_(float("nan"))
    write_png(tmp_path / "a.png", codes(4, 4, 3))
    job = Job(tmp_path / "a.png", tmp_path / "o.exr", None)
    ((_, error),) = reconstruct_jobs(broken, [job], Options())
    assert isinstance(error, ValueError)
    assert "NaN" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_large_results_lie_on_disk_and_are_the_same(model, tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", codes(40, 30, 3))
    photo = read_photo(tmp_path / "a.png")
    expected = reconstruct_photo(model, photo, Options())
    monkeypatch.setattr(strips, "_IN_MEMORY", 100)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    actual = reconstruct_photo(model, photo, Options())
    assert isinstance(actual, np.memmap)
    np.testing.assert_array_equal(actual, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_what_cannot_be_encoded_is_refused_before_the_network_works(model, tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", codes(40, 30, 3))
    jobs = [Job(tmp_path / "a.png", tmp_path / f"o{suffix}", None) for suffix in (".avif", ".exr")]
    free = encoding_bytes("o.avif", 40 * 30) - 1
    monkeypatch.setattr(reconstruct, "available_memory", lambda: float(free))
    seen = []
    (_, refused), (_, error) = reconstruct_jobs(
        model, jobs, Options(), progress=lambda job, share: seen.append(job)
    )
    assert isinstance(refused, MemoryError)
    assert "o.avif: to encode 30 x 40 pixels takes about" in str(refused)
    assert "write .exr, .hdr, .tif or .png" in str(refused)
    assert error is None
    assert set(seen) == {jobs[1]}
    for plenty in (free + 1.0, float("nan")):
        monkeypatch.setattr(reconstruct, "available_memory", lambda plenty=plenty: plenty)
        ((_, error),) = reconstruct_jobs(model, jobs[:1], Options())
        assert error is None


@pytest.mark.parametrize("shape", [(1, 1), (3, 20000), (20000, 3)])
def test_tiny_and_thin_photos_are_good_ones(model, tmp_path, shape):
    write_png(tmp_path / "a.png", codes(*shape, 3))
    job = Job(tmp_path / "a.png", tmp_path / "o.exr", tmp_path / "o_preview.png")
    ((_, error),) = reconstruct_jobs(model, [job], Options())
    assert error is None
    assert read_hdr(job.output).shape == (*shape, 3)
    assert max(read_photo(tmp_path / "o_preview.png").pixels.shape) <= 4096
