import numpy as np
import pytest
import torch

from dkpn import color

# PQ raises to the 79th power one way and to the 6th the other: a relative error of one unit in the
# last place grows by their product, and there are two such errors.
FLOAT64_POWERS = 2 * 79 * 6.3 * torch.finfo(torch.float64).eps
WHITE_IN_8_BITS = 254.5 / 255


def grid(start: float, end: float, count: int = 501) -> torch.Tensor:
    return torch.linspace(start, end, count, dtype=torch.float64)


def nits_grid(start: float = 0.005, end: float = 10000.0) -> torch.Tensor:
    return torch.logspace(np.log10(start), np.log10(end), 401, dtype=torch.float64)


# Published values; each is given with as many digits as its source prints.
PUBLISHED = [
    # ITU-R BT.2408-7, table 1 and annex: nominal signal levels of PQ.
    (color.pq_encode, 100.0, 0.508, 3),
    (color.pq_encode, 203.0, 0.58, 2),
    (color.pq_encode, 1000.0, 0.752, 3),
    (color.pq_encode, 4000.0, 0.903, 3),
    (color.pq_encode, 10000.0, 1.0, 12),
    # The ends of the range as FFmpeg's filter lists them for this parameter set.
    (color.pu21_encode, 0.005, 5.4705e-10, 8),
    (color.pu21_encode, 10000.0, 595.3939, 4),
    # IEC 61966-2-1: the end of the straight part and the colour 50 % grey.
    (color.srgb_to_linear, 0.04045, 0.0031308, 7),
    (color.srgb_to_linear, 0.5, 0.2140, 4),
    (color.linear_to_srgb, 0.0031308, 0.04045, 5),
    (color.linear_to_srgb, 0.18, 0.461, 3),
]


@pytest.mark.parametrize(("function", "value", "expected", "digits"), PUBLISHED)
def test_published_values(function, value, expected, digits):
    actual = function(torch.tensor(value, dtype=torch.float64)).item()
    assert abs(actual - expected) <= 0.5 * 10.0**-digits


def test_reference_white_is_58_percent_of_pq():
    white = color.pq_encode(torch.tensor(color.WHITE_NITS))
    assert round(white.item(), 2) == 0.58


@pytest.mark.parametrize(
    ("forward", "backward", "values"),
    [
        (color.srgb_to_linear, color.linear_to_srgb, grid(0.0, 1.0)),
        (color.linear_to_srgb, color.srgb_to_linear, grid(0.0, 20.0)),
        (color.pq_encode, color.pq_decode, nits_grid()),
        (color.pq_decode, color.pq_encode, grid(0.01, 1.0)),
    ],
)
def test_round_trips(forward, backward, values):
    there_and_back = backward(forward(values))
    # The two published constants of sRGB, 0.04045 and 0.0031308, meet to 1e-8 only.
    tolerance = 1e-8 if forward in (color.srgb_to_linear, color.linear_to_srgb) else FLOAT64_POWERS
    torch.testing.assert_close(there_and_back, values, rtol=tolerance, atol=tolerance)


def test_pu21_is_undone_by_the_published_decoder():
    nits = nits_grid()
    p1, p2, p3, p4, p5, p6, p7 = (
        0.353487901,
        0.3734658629,
        8.277049286e-05,
        0.9062562627,
        0.09150303166,
        0.9099517204,
        596.3148142,
    )
    power = (color.pu21_encode(nits) / p7 + p6) ** (1 / p5)
    decoded = ((power - p1).clamp(min=0) / (p2 - p3 * power)) ** (1 / p4)
    # The decoder's difference power - p1 cancels near the dark end, by up to some 50 there.
    torch.testing.assert_close(decoded, nits, rtol=100 * FLOAT64_POWERS, atol=0)


def test_pu21_gives_100_nits_the_range_of_8_bits():
    encoded = color.pu21_encode(torch.tensor(100.0, dtype=torch.float64))
    assert 255 < encoded.item() < 257


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (color.srgb_to_linear, grid(-0.1, 1.5)),
        (color.linear_to_srgb, grid(-0.1, 20.0)),
        (color.pq_encode, nits_grid()),
        (color.pq_decode, grid(0.0, 1.0)),
        (color.pu21_encode, nits_grid()),
        (color.mu_law, grid(0.0, 20.0)),
    ],
)
def test_strictly_increasing(function, values):
    assert (function(values).diff() > 0).all()


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (color.srgb_to_linear, [-0.2, 0.02, 0.2, 1.0, 1.4]),
        (color.linear_to_srgb, [-0.2, 0.001, 0.2, 1.0, 7.0]),
        (color.pq_encode, [0.01, 1.0, 203.0, 9000.0]),
        (color.pq_decode, [0.1, 0.5, 0.9]),
        (color.pu21_encode, [0.01, 1.0, 203.0, 9000.0]),
        (color.mu_law, [0.001, 0.5, 1.0, 30.0]),
    ],
)
def test_gradients_match_finite_differences(function, values):
    argument = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, argument)


@pytest.mark.parametrize("function", [color.srgb_to_linear, color.linear_to_srgb, color.mu_law])
def test_gradient_at_zero_is_finite(function):
    argument = torch.zeros(3, requires_grad=True)
    function(argument).sum().backward()
    assert argument.grad is not None
    assert torch.isfinite(argument.grad).all()
    assert (argument.grad > 0).all()


def test_absolute_encodings_clamp_outside_their_range():
    outside = torch.tensor([-5.0, 0.0, 2e4], requires_grad=True)
    inside = torch.tensor([0.005, 0.005, 1e4])
    encoded = color.pu21_encode(outside)
    assert torch.equal(encoded, color.pu21_encode(inside))
    encoded.sum().backward()
    assert outside.grad is not None
    assert torch.equal(outside.grad, torch.zeros(3))
    assert torch.equal(
        color.pq_encode(torch.tensor([-5.0, 2e4])), color.pq_encode(torch.tensor([0.0, 1e4]))
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [
        color.srgb_to_linear,
        color.linear_to_srgb,
        color.luminance,
        color.pq_encode,
        color.pq_decode,
        color.pu21_encode,
        color.mu_law,
        color.tone_map,
    ],
)
def test_dtype_is_kept_and_the_argument_unchanged(function, dtype):
    image = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = image.clone()
    result = function(image)
    assert result.dtype == dtype
    assert torch.isfinite(result).all()
    assert torch.equal(image, before)


@pytest.mark.parametrize("function", [color.pq_encode, color.tone_map, color.luminance])
def test_integers_are_refused_with_the_cure(function):
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.uint8.*divided by 255"):
        function(torch.zeros(3, 4, 4, dtype=torch.uint8))


def test_arrays_are_refused():
    with pytest.raises(TypeError, match=r"nits: expected a torch\.Tensor, got ndarray"):
        color.pu21_encode(np.zeros(3))  # pyright: ignore[reportArgumentType]


def test_mu_law_ends_and_strength():
    values = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    assert color.mu_law(values).tolist() == [0.0, 0.0, 1.0]
    assert color.mu_law(torch.tensor(0.1), mu=10.0) < color.mu_law(torch.tensor(0.1))
    with pytest.raises(ValueError, match="mu: expected a number above 0"):
        color.mu_law(values, mu=0.0)


def test_luminance_of_primaries_and_grey():
    primaries = torch.eye(3, dtype=torch.float64)[:, :, None]  # pixel j is primary j
    assert color.luminance(primaries)[0, :, 0].tolist() == list(color.LUMINANCE_WEIGHTS)
    grey = torch.full((2, 3, 4, 5), 0.25, dtype=torch.float64)
    assert color.luminance(grey).shape == (2, 1, 4, 5)
    torch.testing.assert_close(color.luminance(grey), grey[:, :1])


@pytest.mark.parametrize("shape", [(3, 4), (4, 5, 6), (1, 4, 4)])
def test_luminance_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"image: expected shape \(\.\.\., 3, H, W\)"):
        color.luminance(torch.zeros(shape))


def hdr_image(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(2.5 * torch.randn(3, 16, 17, generator=generator, dtype=torch.float64))


def test_tone_map_does_not_depend_on_the_unit():
    # Exposures differ by rounding of the logarithms alone.
    torch.testing.assert_close(
        color.tone_map(hdr_image()), color.tone_map(hdr_image() * 1e4), rtol=1e-9, atol=1e-9
    )


def test_tone_map_puts_the_average_near_middle_grey():
    grey = torch.full((3, 8, 8), 37.0, dtype=torch.float64)
    # 0.18 after the operator, whose white point is 1 here: 0.18 (1 + 0.18) / (1 + 0.18).
    expected = color.linear_to_srgb(torch.tensor(0.18, dtype=torch.float64))
    torch.testing.assert_close(color.tone_map(grey), expected.expand(3, 8, 8))


def test_tone_map_keeps_the_order_of_greys():
    ramp = torch.logspace(-3, 2, 64, dtype=torch.float64).expand(3, 4, 64)
    preview = color.tone_map(ramp)
    assert (preview.diff(dim=-1) >= 0).all()
    assert preview.min() >= 0
    assert preview.max() > WHITE_IN_8_BITS


def test_tone_map_treats_a_batch_image_by_image():
    images = torch.stack([hdr_image(0), hdr_image(1) * 100])
    expected = torch.stack([color.tone_map(image) for image in images])
    assert torch.equal(color.tone_map(images), expected)
    assert color.tone_map(images[:0]).shape == (0, 3, 16, 17)


def test_tone_map_of_black_and_of_suns():
    assert torch.equal(color.tone_map(torch.zeros(3, 4, 4)), torch.zeros(3, 4, 4))
    image = torch.full((3, 8, 8), 1e-3)
    image[:, 0, 0] = 1e6
    preview = color.tone_map(image)
    assert torch.isfinite(preview).all()
    assert (preview[:, 0, 0] > WHITE_IN_8_BITS).all()
    assert (preview[:, 1, 1] > 0.2).all()  # the sun does not darken the rest


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tone_map_refuses_what_is_not_finite(bad):
    image = torch.ones(3, 4, 4)
    image[0, 0, 0] = bad
    with pytest.raises(ValueError, match="image: expected finite values"):
        color.tone_map(image)


def test_tone_map_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(3, H, W\) or \(B, 3, H, W\), got \(4, 4, 3\)"):
        color.tone_map(torch.zeros(4, 4, 3))
