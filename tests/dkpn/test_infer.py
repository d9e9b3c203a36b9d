import numpy as np
import pytest
import torch

from dkpn import DKPN, DKPNConfig
from dkpn.infer import encoded_batch

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


def test_little_memory_and_panoramas_take_the_same_path(model):
    photo = codes(170, 190, 3)
    shares = []
    whole = model.infer(photo)
    tiled = model.infer(photo, max_memory=0.01, progress=shares.append)
    # The same sums; a convolution may choose another order for another width.
    np.testing.assert_allclose(tiled, whole, rtol=1e-5, atol=1e-6)
    assert len(shares) > 1
    assert shares[-1] == 1
    around = model.infer(photo, panorama=True)
    assert np.abs(around[:, 95] - whole[:, 95]).max() < 1e-5
    assert np.abs(around[:, 0] - whole[:, 0]).max() > 1e-4
    with pytest.raises(ValueError, match="max_memory: 1e-06 GiB is not enough"):
        model.infer(photo, max_memory=1e-6)
