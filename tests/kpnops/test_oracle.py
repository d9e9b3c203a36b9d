"""The oracle against sums done by hand, PyTorch's own operators, and its own forward."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers import (
    FLOAT64_BUDGET,
    GRADIENTS,
    PADDING_MODES,
    Case,
    Operands,
    oracle_backward,
    oracle_forward,
    oracle_magnitudes,
    relative_errors,
    run_oracle,
    to_numpy,
)


def arrays_of(case: Case, seed: int = 0) -> Operands:
    return Operands(*map(to_numpy, case.operands(seed=seed)))


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    scale = np.full_like(expected, np.abs(expected).max())
    assert relative_errors(actual, expected, scale).maximum <= FLOAT64_BUDGET.maximum


ROW = Case(size=(1, 3), channels=1, kernel_size=(1, 3), channel_filter="none")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # image 2 3 5, taps 1 10 100 at every pixel: left + 10 middle + 100 right
        ("zeros", [320, 532, 53]),
        ("replicate", [322, 532, 553]),
        ("reflect", [323, 532, 353]),
        ("circular", [325, 532, 253]),
    ],
)
def test_row_by_hand(mode: str, expected: list[float]) -> None:
    image = np.array([2.0, 3.0, 5.0]).reshape(1, 1, 1, 3)
    spatial = np.broadcast_to(np.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1), (1, 3, 1, 3))
    case = replace(ROW, padding_mode=mode)
    assert oracle_forward(case, Operands(image, spatial, None)).ravel().tolist() == expected


def test_row_gradient_by_hand() -> None:
    image = np.array([2.0, 3.0, 5.0]).reshape(1, 1, 1, 3)
    spatial = np.arange(1.0, 10.0).reshape(1, 3, 1, 3)  # tap t at pixel p: 3t + p + 1
    gain = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    cotangent = np.array([1.0, 10.0, 100.0]).reshape(1, 1, 1, 3)
    case = replace(ROW, channel_filter="pixel")
    grads = oracle_backward(case, Operands(image, spatial, gain), cotangent)
    # Pixel 0 is read by its own middle tap (4) and the left tap of pixel 1 (2); pixel 1 by the taps
    # 7, 5 and 3; pixel 2 by 8 and 6.
    assert grads.input.ravel().tolist() == [4 + 40, 7 + 100 + 900, 160 + 1800]
    assert grads.spatial_filter.reshape(3, 3).tolist() == [
        [0, 40, 900],  # left neighbour times gradient times gain
        [2, 60, 1500],
        [3, 100, 0],
    ]
    assert grads.channel_filter.ravel().tolist() == [4 * 2 + 7 * 3, 10 * (4 + 15 + 40), 100 * 39]


def test_even_kernels_reach_further_to_the_right() -> None:
    # K = 4 has r = 1: taps at -1, 0, 1, 2. K = 2 has r = 0: taps at 0, 1.
    image = np.arange(1.0, 7.0).reshape(1, 1, 1, 6)
    for taps, expected in [(4, 2 + 10 * 3 + 100 * 4 + 1000 * 5), (2, 3 + 10 * 4)]:
        weights = 10.0 ** np.arange(taps)
        spatial = np.broadcast_to(weights.reshape(1, taps, 1, 1), (1, taps, 1, 6))
        case = replace(ROW, size=(1, 6), kernel_size=(1, taps))
        assert oracle_forward(case, Operands(image, spatial, None))[0, 0, 0, 2] == expected


def test_groups_taps_and_stride_by_hand() -> None:
    # Four channels in two groups, two taps one above the other, dilation 2, every second row.
    image = np.arange(4 * 3, dtype=np.float64).reshape(1, 4, 3, 1)
    spatial = np.array([[1.0, 5.0], [10.0, 50.0], [2.0, 6.0], [20.0, 60.0]]).reshape(1, 4, 2, 1)
    case = Case(
        channels=4,
        size=(3, 1),
        kernel_size=(2, 1),
        groups=2,
        stride=(2, 1),
        dilation=(2, 1),
        channel_filter="none",
    )
    out = oracle_forward(case, Operands(image, spatial, None))
    assert out[0, :, 0, 0].tolist() == [0 + 20, 3 + 50, 12 + 160, 18 + 220]
    assert out[0, :, 1, 0].tolist() == [10, 25, 48, 66]  # the second tap reads below the image


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_channel_filters_by_hand(combine: str) -> None:
    image = np.array([3.0, 5.0]).reshape(1, 2, 1, 1)
    spatial = np.array([2.0]).reshape(1, 1, 1, 1)
    gains = np.array([7.0, 11.0])
    expected = [42, 110] if combine == "mul" else [27, 65]
    for channel_filter, shape in [("image", (1, 2, 1)), ("pixel", (1, 2, 1, 1))]:
        case = Case(
            channels=2,
            size=(1, 1),
            kernel_size=(1, 1),
            channel_filter=channel_filter,
            combine=combine,
        )
        out = oracle_forward(case, Operands(image, spatial, gains.reshape(shape)))
        assert out.ravel().tolist() == expected


def test_softmax_by_hand() -> None:
    # Logits log 1 and log 3 are probabilities 1/4 and 3/4; K = 2 reads the pixel and its right
    # neighbour, which the last pixel lacks.
    image = np.array([8.0, 16.0]).reshape(1, 1, 1, 2)
    logits = np.log([1.0, 1.0, 3.0, 3.0]).reshape(1, 2, 1, 2)
    case = replace(ROW, size=(1, 2), kernel_size=(1, 2), normalize="softmax")
    arrays = Operands(image, logits, None)
    assert_equal(oracle_forward(case, arrays), np.array([14.0, 4.0]).reshape(1, 1, 1, 2))
    cotangent = np.array([1.0, 10.0]).reshape(1, 1, 1, 2)
    grads = oracle_backward(case, arrays, cotangent)
    assert_equal(grads.input, np.array([0.25, 0.75 + 2.5]).reshape(1, 1, 1, 2))
    # P (dP - sum P dP): at the first pixel 1/4 (8 - 14) and 3/4 (16 - 14); at the second
    # 1/4 (160 - 40) and 3/4 (0 - 40).
    expected = np.array([-1.5, 30.0, 1.5, -30.0]).reshape(1, 2, 1, 2)
    assert_equal(grads.spatial_filter, expected)


def test_softmax_is_over_the_taps_of_each_group() -> None:
    image = np.array([8.0, 16.0]).reshape(1, 2, 1, 1)
    logits = np.log([1.0, 3.0, 3.0, 1.0]).reshape(1, 4, 1, 1)
    case = Case(
        channels=2,
        size=(1, 1),
        kernel_size=(1, 2),
        groups=2,
        padding_mode="replicate",
        channel_filter="image",
        combine="add",
        normalize="softmax",
    )
    gains = np.array([10.0, 20.0, 30.0, 40.0]).reshape(1, 2, 2)
    out = oracle_forward(case, Operands(image, logits, gains))
    expected = np.array([8 * (10.25 + 20.75), 16 * (30.75 + 40.25)])
    assert_equal(out, expected.reshape(1, 2, 1, 1))


def test_softmax_of_infinite_logits() -> None:
    image = np.array([8.0, 16.0]).reshape(1, 1, 1, 2)
    case = replace(ROW, size=(1, 2), kernel_size=(1, 2), normalize="softmax")
    logits = np.array([-np.inf, -np.inf, 2.0, -np.inf]).reshape(1, 2, 1, 2)
    with np.errstate(invalid="ignore"):
        out = oracle_forward(case, Operands(image, logits, None))
    assert out.ravel().tolist()[0] == 16
    assert np.isnan(out).ravel().tolist() == [False, True]  # the second pixel: all taps -inf


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("zeros", [320, 320, 532, 532, 53, 53]), ("circular", [325, 325, 532, 532, 253, 253])],
)
def test_scale_factor_by_hand(mode: str, expected: list[float]) -> None:
    image = np.array([2.0, 3.0, 5.0]).reshape(1, 1, 1, 3)
    spatial = np.broadcast_to(np.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1), (1, 3, 2, 6))
    case = replace(ROW, padding_mode=mode, scale_factor=2)
    out = oracle_forward(case, Operands(image, spatial, None))
    assert out.shape == (1, 1, 2, 6)  # one row becomes two as well
    assert out[0, 0].tolist() == [expected, expected]


def test_scale_factor_gradient_by_hand() -> None:
    image = np.array([2.0, 3.0]).reshape(1, 1, 1, 2)
    spatial = np.arange(1.0, 9.0).reshape(1, 1, 2, 4)  # one tap
    case = replace(ROW, size=(1, 2), kernel_size=(1, 1), scale_factor=2)
    grads = oracle_backward(case, Operands(image, spatial, None), np.ones((1, 1, 2, 4)))
    assert grads.input.ravel().tolist() == [1 + 2 + 5 + 6, 3 + 4 + 7 + 8]
    assert grads.spatial_filter[0, 0].tolist() == [[2, 2, 3, 3], [2, 2, 3, 3]]


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_channel_filter_alone_by_hand(combine: str) -> None:
    image = np.array([2.0, 3.0, 5.0]).reshape(1, 1, 1, 3)
    channel = np.array([1.0, 10.0, 100.0]).reshape(1, 1, 3)
    case = replace(ROW, spatial=False, channel_filter="image", combine=combine)
    arrays = Operands(image, None, channel)
    assert oracle_forward(case, arrays).ravel().tolist() == [320, 532, 53]
    grads = oracle_backward(case, arrays, np.array([1.0, 10.0, 100.0]).reshape(1, 1, 1, 3))
    assert grads.spatial_filter is None
    assert grads.channel_filter.ravel().tolist() == [20 + 300, 2 + 30 + 500, 3 + 50]
    assert grads.input.ravel().tolist() == [10 + 10, 100 + 100 + 100, 1000 + 1000]


def test_mixing_matrix_by_hand() -> None:
    image = np.array([3.0, 5.0]).reshape(1, 2, 1, 1)
    spatial = np.array([2.0]).reshape(1, 1, 1, 1)
    matrix = np.array([[1.0, 10.0], [100.0, 1000.0], [0.0, -1.0]]).reshape(1, 3, 2, 1, 1)
    case = Case(
        channels=2, size=(1, 1), kernel_size=(1, 1), channel_filter="mix", output_channels=3
    )
    arrays = Operands(image, spatial, matrix)
    assert oracle_forward(case, arrays).ravel().tolist() == [6 + 100, 600 + 10000, -10]
    grads = oracle_backward(case, arrays, np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1))
    assert grads.channel_filter.reshape(3, 2).tolist() == [[6, 10], [12, 20], [18, 30]]
    assert grads.input.ravel().tolist() == [2 * (1 + 200), 2 * (10 + 2000 - 3)]
    assert grads.spatial_filter.ravel().tolist() == [201 * 3 + 2007 * 5]


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_scaled_constant_filter_is_a_repeated_convolution(mode: str) -> None:
    case = Case(
        channels=4,
        size=(5, 7),
        kernel_size=(3, 4),
        scale_factor=3,
        padding_mode=mode,
        groups=4,
        channel_filter="none",
    )
    image, _, _ = case.operands()
    kernel = torch.randn(4, 1, 3, 4, dtype=torch.float64)
    padded = F.pad(image, (1, 2, 1, 1), mode="constant" if mode == "zeros" else mode)
    expected = F.interpolate(F.conv2d(padded, kernel, groups=4), scale_factor=3, mode="nearest")
    spatial = kernel.reshape(1, 48, 1, 1).expand(1, 48, *case.output_size)
    actual = oracle_forward(case, Operands(to_numpy(image), to_numpy(spatial), None))
    assert_equal(actual, to_numpy(expected))


def test_magnitudes_under_softmax_by_hand() -> None:
    # As in test_softmax_by_hand: P = 1/4 and 3/4, dP = 8 and -16 at the first pixel.
    image = np.array([8.0, -16.0]).reshape(1, 1, 1, 2)
    logits = np.log([1.0, 1.0, 3.0, 3.0]).reshape(1, 2, 1, 2)
    case = replace(ROW, size=(1, 2), kernel_size=(1, 2), normalize="softmax")
    cotangent = np.array([1.0, -10.0]).reshape(1, 1, 1, 2)
    magnitudes = oracle_magnitudes(case, Operands(image, logits, None), cotangent, smallest=0)
    assert_equal(magnitudes["output"], np.array([14.0, 4.0]).reshape(1, 1, 1, 2))
    expected = np.array([0.25 * (8 + 14), 0.25 * (160 + 40), 0.75 * (16 + 14), 0.75 * (0 + 40)])
    assert_equal(magnitudes["grad_spatial_filter"], expected.reshape(1, 2, 1, 2))
    floor = oracle_magnitudes(case, Operands(image, logits, None), cotangent, smallest=1.0)
    assert_equal(floor["output"], np.array([14.0 + 24, 4.0 + 16]).reshape(1, 1, 1, 2))


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_constant_filter_is_depthwise_convolution(mode: str, stride: tuple[int, int]) -> None:
    case = Case(
        channels=4,
        size=(9, 11),
        kernel_size=(3, 4),
        stride=stride,
        dilation=(2, 1),
        padding_mode=mode,
        groups=4,
        channel_filter="none",
    )
    image, _, _ = case.operands()
    kernel = torch.randn(4, 1, 3, 4, dtype=torch.float64)
    padded = F.pad(image, (1, 2, 2, 2), mode="constant" if mode == "zeros" else mode)
    expected = F.conv2d(padded, kernel, stride=stride, dilation=(2, 1), groups=4)
    spatial = kernel.reshape(1, 48, 1, 1).expand(1, 48, *case.output_size)
    actual = oracle_forward(case, Operands(to_numpy(image), to_numpy(spatial), None))
    assert_equal(actual, to_numpy(expected))


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_shifts_are_those_of_torch_pad(mode: str) -> None:
    case = replace(ROW, size=(5, 6), kernel_size=(3, 5), padding_mode=mode)
    image, _, _ = case.operands()
    padded = F.pad(image, (2, 2, 1, 1), mode="constant" if mode == "zeros" else mode)
    for tap in range(15):
        spatial = np.zeros((1, 15, 5, 6))
        spatial[:, tap] = 1
        shifted = padded[..., tap // 5 : tap // 5 + 5, tap % 5 : tap % 5 + 6]
        actual = oracle_forward(case, Operands(to_numpy(image), spatial, None))
        assert np.array_equal(actual, to_numpy(shifted))


GRADIENT_CASES = [
    Case(channel_filter="none", batch=2, channels=4, groups=2),
    Case(channel_filter="image", channels=4, groups=2, batch=2, kernel_size=(2, 3)),
    Case(channel_filter="image", batch=2, channel_batch=1, combine="add", stride=(2, 1)),
    Case(batch=2, channel_batch=1, padding_mode="circular", dilation=(1, 9)),
    Case(combine="add", stride=(2, 3), rounding=("floor", "ceil"), padding_mode="replicate"),
    Case(padding_mode="reflect", kernel_size=(5, 4), groups=3),
    Case(normalize="softmax", channels=4, groups=2, size=(3, 4)),
    Case(normalize="softmax", channel_filter="image", combine="add", stride=(2, 1)),
    Case(scale_factor=2, size=(2, 3), padding_mode="replicate", batch=2, channel_batch=1),
    Case(scale_factor=3, size=(2, 2), normalize="softmax", channel_filter="none"),
    Case(spatial=False, channel_filter="image", stride=(2, 2), combine="add", dilation=(1, 2)),
    Case(channel_filter="mix", output_channels=5, batch=2, channel_batch=1, kernel_size=(2, 2)),
    Case(channel_filter="mix", output_channels=1, groups=3, normalize="softmax", scale_factor=2),
]

# Central differences over this step are off by its square and by rounding over it: about 1e-9.
STEP = 1e-4
CENTRAL_DIFFERENCE = 1e-7


def tolerance(case: Case) -> float:
    return FLOAT64_BUDGET.maximum if case.normalize is None else CENTRAL_DIFFERENCE


def change_of_output(case: Case, operands: Operands, name: str, step: np.ndarray) -> np.ndarray:
    """Derivative of the output along a step of one operand."""

    def forward(distance: float) -> np.ndarray:
        moved = getattr(operands, name) + distance * step
        return oracle_forward(case, operands._replace(**{name: moved}))

    if name == "spatial_filter" and case.normalize is not None:
        return (forward(STEP) - forward(-STEP)) / (2 * STEP)
    # Linear in each operand alone: a difference over any step is the derivative.
    return forward(1) - forward(0)


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=repr)
def test_gradients_are_derivatives_of_the_forward(case: Case) -> None:
    operands, steps = arrays_of(case), arrays_of(case, seed=7)
    cotangent = to_numpy(case.cotangent())
    results = run_oracle(case, operands, cotangent)
    assert list(results) == ["output"] + [
        name for name, array in zip(GRADIENTS, operands, strict=True) if array is not None
    ]
    for name, gradient in results.items():
        if name == "output":
            continue
        operand = name.removeprefix("grad_")
        step = getattr(steps, operand)
        change = change_of_output(case, operands, operand, step)
        expected, slope = np.sum(change * cotangent), np.sum(gradient * step)
        scale = np.abs(change * cotangent).sum()
        assert abs(expected - slope) <= tolerance(case) * scale


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=repr)
def test_gradients_put_every_share_where_it_belongs(case: Case) -> None:
    # One output element at a time: its gradient must vanish wherever the forward does not read.
    case = replace(case, size=(3, 4) if case.scale_factor == 1 else (2, 2))
    operands = arrays_of(case)
    cotangent = np.zeros_like(to_numpy(case.cotangent()))
    where = (case.batch - 1, case.output_shape[1] // 2, case.output_size[0] - 1, 0)
    cotangent[where] = 1
    gradients = oracle_backward(case, operands, cotangent)._asdict()
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        for place in np.ndindex(gradient.shape):
            step = np.zeros_like(gradient)
            step[place] = 1
            slope = change_of_output(case, operands, name, step)[where]
            assert abs(slope - gradient[place]) <= tolerance(case) * 100  # |values| < 100


def test_not_a_number_stays_where_it_is_read() -> None:
    case = replace(ROW, size=(1, 5))
    image = np.ones((1, 1, 1, 5))
    image[..., 0] = np.nan
    out = oracle_forward(case, Operands(image, np.ones((1, 3, 1, 5)), None))
    assert np.isnan(out).ravel().tolist() == [True, True, False, False, False]


def test_infinity_times_a_padded_zero_is_not_a_number() -> None:
    spatial = np.full((1, 3, 1, 3), np.inf)
    with np.errstate(invalid="ignore"):
        out = oracle_forward(ROW, Operands(np.ones((1, 1, 1, 3)), spatial, None))
    assert np.isnan(out).ravel().tolist() == [True, False, True]
