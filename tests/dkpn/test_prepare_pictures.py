import numpy as np
import pytest

from dkpn.prepare.pictures import PrepareSettings, range_in_stops, shrink_area


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("panorama", "maybe"),
        ("covered", "maybe"),
        ("min_side", 15),
        ("max_side", 100),
        ("max_bytes", 0),
        ("min_stops", -1),
        ("bits", 0),
        ("bits", 11),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected .* got {value}"):
        PrepareSettings(**{field: value})


def test_shrinking_by_whole_numbers_is_the_mean_of_boxes():
    image = np.random.default_rng(0).random((12, 20, 3), dtype=np.float32)
    expected = image.reshape(4, 3, 5, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(shrink_area(image, (4, 5)), expected, rtol=1e-5)  # float32 sums
    assert np.array_equal(shrink_area(image, (12, 20)), image)


@pytest.mark.parametrize("size", [(7, 11), (12, 1), (1, 19), (11, 20)])
def test_shrinking_by_fractions_averages_the_area_covered(size):
    image = np.random.default_rng(0).random((12, 20, 3), dtype=np.float32)
    # Each pixel drawn as many times as the new size has pixels makes the ratio a whole number.
    fine = image.repeat(size[0], axis=0).repeat(size[1], axis=1).astype(np.float64)
    expected = fine.reshape(size[0], 12, size[1], 20, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(shrink_area(image, size), expected, rtol=1e-5)  # float32 sums


@pytest.mark.parametrize("size", [(13, 5), (5, 21), (0, 5)])
def test_shrinking_does_not_enlarge(size):
    with pytest.raises(ValueError, match="size: expected 1 to 12 and 1 to 20"):
        shrink_area(np.ones((12, 20, 3), np.float32), size)


def test_range_in_stops_is_that_of_percentiles():
    values = np.concatenate((np.full(9, 0.25), np.full(987, 1.0), np.full(4, 64.0)))
    assert range_in_stops(values) == 0  # so few of a thousand are beyond the percentiles
    ramp = np.exp2(np.linspace(0, 10, 1001))
    assert range_in_stops(ramp) == pytest.approx(9.85, abs=1e-9)
    assert range_in_stops(np.concatenate((np.zeros(50), np.ones(50)))) == 20
    assert range_in_stops(np.zeros(9)) == 0
