import math

import numpy as np
import pytest
import torch

from dkpn.views import (
    PanoramaView,
    Scene,
    is_panorama,
    log_panorama,
    stops_in_square,
    stops_in_view,
    thumbnail,
    view_of_panorama,
    view_of_photo,
)

HEIGHT, WIDTH = 64, 128


def directions_panorama() -> np.ndarray:
    """A panorama whose colour is 2 + the direction (right, up, forward) of each pixel."""
    longitude = ((np.arange(WIDTH) + 0.5) / WIDTH * 2 - 1) * np.pi
    latitude = (0.5 - (np.arange(HEIGHT) + 0.5) / HEIGHT) * np.pi
    flat = np.cos(latitude)[:, None]
    right, forward = flat * np.sin(longitude), flat * np.cos(longitude)
    up = np.broadcast_to(np.sin(latitude)[:, None], right.shape)
    return (2 + np.stack((right, up, forward), axis=2)).astype(np.float32)


# A pixel of the panorama is 2.8 degrees; the logarithm is interpolated between two of them.
NEAR = math.radians(360 / WIDTH)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (PanoramaView(0, 0, 0, 90), (0, 0, 1)),
        (PanoramaView(90, 0, 0, 90), (1, 0, 0)),
        (PanoramaView(180, 0, 0, 90), (0, 0, -1)),  # across the seam
        (PanoramaView(-90, 0, 0, 60), (-1, 0, 0)),
        (PanoramaView(0, 90, 0, 60), (0, 1, 0)),
        (PanoramaView(30, -90, 0, 60), (0, -1, 0)),
        (PanoramaView(0, 45, 20, 60), (0, math.sqrt(0.5), math.sqrt(0.5))),
    ],
)
def test_the_middle_of_a_view_looks_where_it_says(view, expected):
    seen = view_of_panorama(log_panorama(directions_panorama()), view, 33)[:, 16, 16] - 2
    np.testing.assert_allclose(seen, expected, atol=NEAR)


def test_right_is_right_and_up_is_up():
    view = PanoramaView(0, 0, 0, 90)
    seen = view_of_panorama(log_panorama(directions_panorama()), view, 32) - 2
    half = 1 / math.sqrt(2)  # of a ray 45 degrees off the axis
    np.testing.assert_allclose(seen[:, 16, -1], (half, 0, half), atol=2 * NEAR)
    np.testing.assert_allclose(seen[:, 0, 16], (0, half, half), atol=2 * NEAR)
    np.testing.assert_allclose(seen[:, 16, 0], (-half, 0, half), atol=2 * NEAR)


def test_a_clockwise_camera_turns_the_picture_the_other_way():
    panorama = log_panorama(directions_panorama())
    upright = view_of_panorama(panorama, PanoramaView(10, 5, 0, 70), 32)
    turned = view_of_panorama(panorama, PanoramaView(10, 5, 90, 70), 32)
    np.testing.assert_allclose(turned, upright.rot90(1, (-2, -1)), atol=1e-4)


def test_field_of_view_is_from_left_to_right():
    for degrees in (40, 60, 100):
        rays = PanoramaView(25, -10, 0, degrees).directions(200)
        edges = rays[100, 0], rays[100, -1]
        cosine = torch.dot(*edges) / (edges[0].norm() * edges[1].norm())
        # The outermost pixels' middles, not their edges, and half a row off the middle.
        assert math.degrees(math.acos(cosine)) == pytest.approx(degrees, rel=0.01)


def test_views_stay_within_the_range_of_the_panorama():
    rng = np.random.default_rng(0)
    image = np.exp(rng.normal(0, 3, (HEIGHT, WIDTH, 3))).astype(np.float32)
    seen = view_of_panorama(log_panorama(image), PanoramaView(77, 12, 3, 95), 48)
    assert seen.dtype == torch.float32
    assert image.min() * 0.999 <= seen.min() <= seen.max() <= image.max() * 1.001


def test_black_is_floored_and_stays_finite():
    image = directions_panorama()
    image[:32] = 0
    seen = view_of_panorama(log_panorama(image), PanoramaView(0, 60, 0, 60), 16)
    assert torch.isfinite(seen).all()
    assert 0 < seen[:, 8, 8].max() < 1e-5


def test_panoramas_are_told_from_photos():
    panorama = directions_panorama()
    assert is_panorama(panorama)
    assert not is_panorama(panorama[:, :-2])
    # A photo that happens to be twice as wide as high: one side dark, the other bright.
    photo = np.exp(np.linspace(-3, 3, WIDTH))[None, :, None] * np.ones((HEIGHT, 1, 3))
    assert not is_panorama(photo.astype(np.float32))
    assert not is_panorama(panorama[:8, :16])


def test_photo_views_are_cut_exactly_and_averaged():
    photo = torch.rand(3, 20, 30)
    assert torch.equal(view_of_photo(photo, 3, 5, 8, 8), photo[:, 3:11, 5:13])
    constant = torch.full((3, 20, 30), 2.5)
    torch.testing.assert_close(view_of_photo(constant, 0, 0, 20, 13), torch.full((3, 13, 13), 2.5))
    shrunk = view_of_photo(photo, 0, 10, 20, 10)
    # Weights that sum to 1: the mean stays, up to what lies at the edges.
    assert abs(shrunk.mean() - photo[:, :, 10:].mean()) < 0.02
    assert photo.min() <= shrunk.min() <= shrunk.max() <= photo.max()


def test_stops_of_views_and_squares():
    image = directions_panorama()
    image[:, : WIDTH // 2] *= 2**6
    small = thumbnail(Scene("room", image, panorama=True))
    both = stops_in_view(small, PanoramaView(0, 0, 0, 90))
    one = stops_in_view(small, PanoramaView(90, 0, 0, 60))
    assert both == pytest.approx(6, abs=0.7)
    assert one < 1
    assert stops_in_square(np.array([[1.0, 8.0], [1.0, 8.0]])) == pytest.approx(3, abs=0.2)
    assert stops_in_square(np.zeros((4, 4))) == 0
