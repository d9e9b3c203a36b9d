import numpy as np
import pytest
import torch

from dkpn import DKPN, DKPNConfig
from dkpn.infer import (
    Reconstruction,
    encoded_batch,
    plan_reconstructions,
    preview,
    reconstruct_file,
)

TINY = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DKPN(TINY).eval()


def codes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_all_kinds_of_one_photo_give_one_result(model):
    photo = codes(6, 5, 3)
    expected = model.infer(photo)
    assert expected.shape == (6, 5, 3)
    assert expected.dtype == np.float32
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    deep = photo.astype(np.uint16) * 257  # the same fraction of 65535
    exact = photo.astype(np.float64) / 255
    tolerance = {"rtol": 1e-4, "atol": 1e-6}  # float32 division by 255 and by 65535 round apart
    for same in (deep, exact, exact.astype(np.float32)):
        np.testing.assert_allclose(model.infer(same), expected, **tolerance)
    for same in (
        tensor,
        tensor.to(torch.int32).mul(257).to(torch.uint16),
        tensor.double() / 255,
        tensor.float() / 255,
    ):
        actual = model.infer(same)
        assert isinstance(actual, torch.Tensor)
        assert actual.shape == (3, 6, 5)
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual.permute(1, 2, 0).numpy(), expected, **tolerance)


def test_a_batch_keeps_its_dimension(model):
    batch = torch.from_numpy(codes(2, 3, 4, 4))
    assert model.infer(batch).shape == (2, 3, 4, 4)
    assert model.infer(batch[:1]).shape == (1, 3, 4, 4)


def test_arrays_of_any_layout_are_read_and_left_alone(model):
    photo = codes(6, 5, 3)
    expected = model.infer(photo)
    flipped = photo[::-1, ::-1]
    np.testing.assert_array_equal(model.infer(np.ascontiguousarray(flipped)), model.infer(flipped))
    photo.setflags(write=False)
    np.testing.assert_array_equal(model.infer(photo), expected)


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (codes(4, 4), ValueError, r"image.*\(H, W, 3\).*\(4, 4\)"),
        (codes(4, 4, 4), ValueError, r"image.*\(4, 4, 4\)"),
        (codes(0, 4, 3), ValueError, r"image.*\(0, 4, 3\)"),
        (codes(4, 4, 3).astype(np.int64), TypeError, "image.*int64"),
        (codes(4, 4, 3).astype(np.float32), ValueError, r"\[0, 1\].*divide"),
        (np.full((4, 4, 3), np.nan, np.float32), ValueError, "nan"),
        (np.full((4, 4, 3), -0.1), ValueError, r"-0\.1"),
        (torch.zeros(4, 4, 3), ValueError, r"\(3, H, W\).*\(4, 4, 3\)"),
        (torch.zeros(1, 1, 3, 4, 4), ValueError, r"\(1, 1, 3, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), TypeError, "torch.int32"),
        ([[1, 2, 3]], TypeError, "list"),
    ],
)
def test_wrong_images_name_what_came(image, error, text):
    with pytest.raises(error, match=text):
        encoded_batch(image)


def test_a_folder_receives_a_pair_of_files_for_each_photo(tmp_path):
    plan = plan_reconstructions(["a/one.jpg", "b/two.png"], tmp_path / "new")
    assert [entry.hdr.name for entry in plan] == ["one.exr", "two.exr"]
    assert [entry.preview.name for entry in plan] == ["one_preview.png", "two_preview.png"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("suffix", [".exr", ".hdr", ".EXR"])
def test_a_file_receives_one_photo_and_its_preview_lies_beside(tmp_path, suffix):
    (entry,) = plan_reconstructions(["one.jpg"], tmp_path / f"out{suffix}")
    assert entry.hdr == tmp_path / f"out{suffix}"
    assert entry.preview == tmp_path / "out_preview.png"


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.exr").mkdir()
    for photos, output, error, text in (
        (["a.jpg"], "x.tiff", ValueError, r"x\.tiff.*\.exr or \.hdr.*\.tiff"),
        (["a.jpg", "b.jpg"], "x.exr", ValueError, "2 photos.*folder"),
        (["a.jpg"], "absent/x.exr", FileNotFoundError, "absent does not exist"),
        (["a.jpg"], "file", ValueError, "file: is a file"),
        (["a.jpg"], "folder.exr", ValueError, "is a folder"),
        (["x/a.jpg", "y/a.png"], "out", ValueError, r"a\.jpg and .*a\.png"),
        (["x/a.jpg", "y/A.png"], "out", ValueError, r"a\.jpg and .*A\.png"),
    ):
        with pytest.raises(error, match=text):
            plan_reconstructions(photos, tmp_path / output)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_never_replaces_a_photo(tmp_path, overwrite):
    photo = tmp_path / "a.jpg"
    other = tmp_path / "a_preview.png"  # where the preview of a.jpg would go
    photo.write_bytes(b"")
    other.write_bytes(b"")
    with pytest.raises(ValueError, match="overwrite one of the photos"):
        plan_reconstructions([photo, other], tmp_path, overwrite=overwrite)


@pytest.mark.parametrize("name", ["a.exr", "a_preview.png"])
def test_existing_outputs_need_permission(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError, match=rf"{name}.*--overwrite"):
        plan_reconstructions(["photos/a.jpg"], tmp_path)
    assert plan_reconstructions(["photos/a.jpg"], tmp_path, overwrite=True)


def test_reconstruct_file_writes_what_infer_gives(model, tmp_path):
    pytest.importorskip("OpenEXR")
    from dkpn.hdr_io import read_hdr, read_photo, write_png

    photo = codes(9, 7, 3)
    write_png(tmp_path / "a.png", photo)
    entry = Reconstruction(tmp_path / "a.png", tmp_path / "o.exr", tmp_path / "o_preview.png")
    reconstruct_file(model, entry)
    np.testing.assert_array_equal(read_hdr(entry.hdr), model.infer(photo))
    np.testing.assert_array_equal(read_photo(entry.preview), preview(model.infer(photo)))


def test_a_result_that_is_not_finite_is_never_written(tmp_path):
    from dkpn.hdr_io import write_png

    torch.manual_seed(0)
    broken = DKPN(TINY)
    with torch.no_grad():
        broken.head.convolution.bias.fill_(float("nan"))
    write_png(tmp_path / "a.png", codes(4, 4, 3))
    entry = Reconstruction(tmp_path / "a.png", tmp_path / "o.exr", tmp_path / "o_preview.png")
    with pytest.raises(ValueError, match=r"a\.png.*NaN"):
        reconstruct_file(broken, entry)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]
