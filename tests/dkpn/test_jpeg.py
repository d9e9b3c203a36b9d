import sys

import numpy as np
import pytest
import torch

from dkpn.jpeg import jpeg_decode, jpeg_encode, jpeg_loss, jpeg_roundtrip

pytest.importorskip("PIL.Image", reason="Pillow makes the JPEG files")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Waves of all three channels with noise on them: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / a) * 70 + np.cos(x / b) * 50 for a, b in ((5, 7), (3, 11), (17, 2.5))]
    values = 128 + np.stack(waves, axis=2) + rng.normal(0, 12, (height, width, 3))
    return values.clip(0, 255).round().astype(np.uint8)


def as_batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("quality", [1, 5, 30, 49, 50, 75, 90, 95, 99, 100])
@pytest.mark.parametrize("size", [(48, 64), (37, 61), (16, 17), (26, 24), (1, 1), (3, 50)])
def test_loss_on_a_device_is_that_of_a_file(size, quality):
    image = picture(*size)
    expected = as_batch(jpeg_roundtrip(image, quality))
    actual = jpeg_loss(as_batch(image), [quality])
    assert torch.equal(actual, expected)


def test_each_image_of_a_batch_has_its_own_quality():
    images, qualities = [picture(24, 40, seed) for seed in range(3)], [10, 60, 100]
    together = jpeg_loss(as_batch(*images), qualities)
    for index, (image, quality) in enumerate(zip(images, qualities, strict=True)):
        assert torch.equal(together[index : index + 1], jpeg_loss(as_batch(image), [quality]))


def test_every_colour_of_a_coarse_grid_is_encoded_alike():
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(64, 64, 3)
    assert torch.equal(jpeg_loss(as_batch(colours), [100]), as_batch(jpeg_roundtrip(colours, 100)))


@pytest.mark.gpu
def test_loss_on_a_gpu_is_that_on_a_cpu():
    images = as_batch(picture(37, 61), picture(37, 61, 1))
    assert torch.equal(jpeg_loss(images.cuda(), [40, 95]).cpu(), jpeg_loss(images, [40, 95]))


@pytest.mark.parametrize(
    ("image", "qualities", "error", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [90], TypeError, "image: expected a floating"),
        (torch.zeros(3, 8, 8), [90], ValueError, r"image: expected shape \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 0, 8), [90], ValueError, r"image: expected shape \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8), [90], ValueError, "qualities: expected one for each of 2"),
        (torch.zeros(1, 3, 8, 8), [101], ValueError, r"qualities: expected 1 to 100, got \[101\]"),
    ],
)
def test_loss_refuses_other_arguments(image, qualities, error, message):
    with pytest.raises(error, match=message):
        jpeg_loss(image, qualities)


def test_files_lose_less_at_higher_quality():
    image = picture(48, 64)
    errors = []
    for quality in (30, 60, 90, 100):
        decoded = jpeg_roundtrip(image, quality)
        assert decoded.shape == image.shape
        assert decoded.dtype == np.uint8
        assert decoded.flags.writeable
        errors.append(np.abs(decoded.astype(float) - image).mean())
    assert errors == sorted(errors, reverse=True)
    data = jpeg_encode(image, 90)
    assert np.array_equal(jpeg_decode(data), jpeg_roundtrip(image, 90))
    assert data[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("image", "quality", "error", "message"),
    [
        (np.zeros((4, 4, 3)), 90, TypeError, "image: expected a uint8 numpy array, got float64"),
        (None, 90, TypeError, "image: expected a uint8 numpy array, got NoneType"),
        (np.zeros((4, 4), np.uint8), 90, ValueError, r"image: expected shape \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), 0, ValueError, "quality: expected 1 to 100, got 0"),
    ],
)
def test_files_refuse_other_arguments(image, quality, error, message):
    with pytest.raises(error, match=message):
        jpeg_roundtrip(image, quality)


def test_missing_pillow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "kpnops\[dkpn\]"'):
        jpeg_roundtrip(np.zeros((4, 4, 3), np.uint8), 90)
