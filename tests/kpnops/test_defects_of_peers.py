"""What other implementations of such filters break on: each defect has a test of its own here.

Found in DDF's CUDA operator and packs, CARAFE in mmcv, NATTEN, KPN-PyTorch, and in the compiled
unfold. The defects of DDF's modules are tested with `kpnops.nn` and `kpnops.compat`.
"""

import mmap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kpnops
from tests.helpers import (
    COMPILED_ROUTES,
    CPU,
    INTERPRETED,
    ON_GPU,
    ON_INTERPRETER,
    Case,
    Operands,
    arrange,
    check,
    run_operator,
)

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


# DDF: 15 x 15 taps and more overrun shared memory.
@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("channel_filter", ["image", "pixel"])
@pytest.mark.parametrize("kernel_size", [15, 31])
def test_fifteen_taps_a_side_and_more(kernel_size: int, channel_filter: str, device: str) -> None:
    case = Case(
        kernel_size=(kernel_size,) * 2, size=(3, 4), channels=2, channel_filter=channel_filter
    ).with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


# DDF: 3 x 3 taps eight pixels apart divide by zero and kill the process.
@pytest.mark.parametrize("channel_filter", ["image", "pixel"])
@pytest.mark.parametrize("dilation", [8, 100])
def test_three_taps_with_a_dilation_of_eight(
    dilation: int, channel_filter: str, device: str
) -> None:
    case = Case(
        size=(2, 3) if INTERPRETED else (10, 11),
        dilation=(dilation, dilation),
        channel_filter=channel_filter,
    ).with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


# Everywhere: a padded copy as wide as the reach. What lies beyond the image is not worth a byte.
@pytest.mark.parametrize("dilation", [10**5, 2**31 - 2])
@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
def test_a_dilation_far_beyond_the_image(mode: str, dilation: int, device: str) -> None:
    case = Case(
        channels=1,
        size=(3, 4),
        kernel_size=(2, 3),
        dilation=(dilation, dilation + 1),
        padding_mode=mode,
    )
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


# DDF: any error of a launch ends the process. Here it is an exception, and the next call works.
def test_an_error_is_an_exception(device: str) -> None:
    case = Case(size=(2, 3), kernel_size=(1, 2)).with_dtype(F32)
    image, spatial, channel = case.operands(device)
    with pytest.raises(ValueError, match="spatial_filter"):
        kpnops.decoupled_filter(image, spatial[:, :, :1], channel, kernel_size=(1, 2))
    check(kpnops.decoupled_filter, case, Operands(image, spatial, channel), case.cotangent(device))


# DDF: fails for fewer than five channels, and for a stride on odd sizes.
@pytest.mark.parametrize("size", [(5, 7), (4, 7)])
@pytest.mark.parametrize("channel_filter", ["image", "pixel"])
def test_rgb_with_a_stride_on_odd_sizes(
    channel_filter: str, size: tuple[int, int], device: str
) -> None:
    case = Case(channels=3, size=size, stride=(2, 2), channel_filter=channel_filter)
    case = case.with_dtype(F32)
    check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))


# DDF: casts float16 to float32 and fails for bfloat16.
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_halves_stay_halves(dtype: torch.dtype, device: str) -> None:
    case = Case(size=(2, 3), kernel_size=(2, 2), channel_filter="image").with_dtype(dtype)
    actual = check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))
    assert {tensor.dtype for tensor in actual.values()} == {dtype}


# CARAFE: reads a channels_last tensor as if it were contiguous.
@pytest.mark.parametrize("scale_factor", [1, 2])
def test_channels_last_is_read_as_it_lies(scale_factor: int, device: str) -> None:
    case = Case(
        channels=4, groups=2, size=(2, 3), kernel_size=(1, 3), scale_factor=scale_factor
    ).with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    expected = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    last = Operands(*(arrange(tensor, "channels_last") for tensor in operands))
    actual = run_operator(kpnops.decoupled_filter, case, last, arrange(cotangent, "channels_last"))
    for name, tensor in actual.items():
        assert tensor.is_contiguous(memory_format=torch.channels_last), name
        torch.testing.assert_close(tensor, expected[name])  # the order of sums may differ


# KPN-PyTorch: `.squeeze()` drops a batch of one, and every other size of one.
@pytest.mark.parametrize("form", ["none", "image", "pixel", "mix"])
def test_sizes_of_one_are_kept(form: str, device: str) -> None:
    case = Case(batch=1, channels=1, size=(1, 1), kernel_size=(1, 1), channel_filter=form)
    case = case.with_dtype(F32)
    actual = check(kpnops.decoupled_filter, case, case.operands(device), case.cotangent(device))
    assert actual["output"].shape == (1, 1, 1, 1)


# NATTEN: NaN in a gradient on partial tiles, from memory that was not written.
WIDTHS = [17, 33] if INTERPRETED else [1, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 257, 300]


@pytest.mark.parametrize("options", [{}, {"normalize": "softmax"}, {"stride": (1, 2)}], ids=str)
@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("width", WIDTHS)
def test_gradients_on_partial_tiles(width: int, channels: int, options: dict, device: str) -> None:
    case = Case(size=(3, width), kernel_size=(1, 2), channels=channels, **options).with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    actual = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    expected = run_operator(kpnops.reference.decoupled_filter, case, operands, cotangent)
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name])


# The compiled unfold: atomics, so that no two gradients are alike.
@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
@pytest.mark.parametrize("form", ["none", "image", "pixel", "mix"])
@pytest.mark.parametrize("options", [{}, {"normalize": "softmax"}, {"stride": (2, 2)}], ids=str)
def test_gradients_are_the_same_each_time(options: dict, form: str, device: str) -> None:
    case = Case(batch=2, channels=6, size=(40, 60), channel_filter=form, **options)
    case = case.with_dtype(F32)
    operands, cotangent = case.operands(device), case.cotangent(device)
    first = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    second = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
    assert all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------- large images


def assert_near(actual: Tensor, expected: Tensor, magnitude: Tensor, terms: int) -> None:
    """Each product and each sum rounds once, relative to the absolute terms."""
    rounding = 2 * terms * torch.finfo(F32).eps
    assert bool(((actual - expected).abs() <= rounding * magnitude).all())


def by_shifts(image: Tensor, spatial: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of the spatial filter (3 x 3, zeros, one group), in float64 by taps."""
    H, W = image.shape[2:]
    padded = F.pad(image.double(), (1, 1, 1, 1))
    output = torch.zeros_like(cotangent, dtype=torch.float64)
    gradient = torch.empty_like(spatial, dtype=torch.float64)
    for tap in range(9):
        shifted = padded[..., tap // 3 : tap // 3 + H, tap % 3 : tap % 3 + W]
        output += shifted * spatial[:, tap : tap + 1]
        gradient[:, tap] = (shifted * cotangent).sum(1)
    return output, gradient


# DDF: the forward fails beyond 2,097,120 pixels.
@pytest.mark.parametrize("device", COMPILED_ROUTES, indirect=True)
def test_more_than_two_million_pixels(device: str) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = False  # it takes a while here
    image = torch.randn(1, 1, 1200, 1800, device=device)
    spatial = torch.randn(1, 9, 1200, 1800, device=device, requires_grad=True)
    cotangent = torch.randn_like(image)
    output = kpnops.decoupled_filter(image, spatial)
    (gradient,) = torch.autograd.grad(output, spatial, cotangent)
    operands = image, spatial.detach(), cotangent
    expected = by_shifts(*operands)
    magnitudes = by_shifts(*(tensor.abs() for tensor in operands))
    assert_near(output.detach(), expected[0], magnitudes[0], terms=9)
    assert_near(gradient, expected[1], magnitudes[1], terms=1)


# DDF: an overflow of 32 bits in the gradient of the spatial filter leaves 13.7 % of it unwritten.
@pytest.mark.parametrize("device", [ON_GPU], indirect=True)
def test_spatial_gradient_of_three_full_hd_images(device: str) -> None:
    B, C, H, W, K = 3, 32, 1080, 1920, 5
    assert B * H * W * K**2 * 32 > 2**32
    image = torch.randn(B, C, H, W, device=device)
    spatial = torch.ones(1, 1, 1, 1, device=device).expand(B, K * K, H, W).requires_grad_()
    cotangent = torch.randn(B, C, H, W, device=device)
    output = kpnops.decoupled_filter(image, spatial)
    (gradient,) = torch.autograd.grad(output, spatial, cotangent)
    padded = F.pad(image, (2, 2, 2, 2))
    for tap in range(K * K):
        i, j = divmod(tap, K)
        product = padded[..., i : i + H, j : j + W] * cotangent
        assert_near(gradient[:, tap], product.sum(1), product.abs().sum(1), terms=C)


def far_apart(tensor: Tensor, dim: int) -> Tensor:
    """The same values with more than 2^30 elements between neighbours along one dimension, in
    memory of which only the pages with values exist."""
    step = 2**30 + 16
    count = tensor.numel() // tensor.shape[dim]
    others = iter(torch.empty(tensor.shape[:dim] + tensor.shape[dim + 1 :]).stride())
    strides = [step if axis == dim else next(others) for axis in range(tensor.dim())]
    extent = (tensor.shape[dim] - 1) * step + count
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, extent * tensor.element_size(), flags=flags)
    far = torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, strides)
    return far.copy_(tensor)


# DDF and others: an index times a stride in 32 bits. Three neighbours lie 2^31 elements apart.
@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs anonymous memory maps")
@pytest.mark.parametrize("device", [CPU, ON_INTERPRETER], indirect=True)
@pytest.mark.parametrize("name", [*Operands._fields, "cotangent"])
def test_offsets_beyond_32_bits(name: str, device: str) -> None:
    case = Case(1, 3, (3, 3), (1, 3), normalize="softmax").with_dtype(F16)
    tensors = case.operands(device)._asdict() | {"cotangent": case.cotangent(device)}

    def results(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        *operands, cotangent = tensors.values()
        return run_operator(kpnops.decoupled_filter, case, Operands(*operands), cotangent)

    expected = results(tensors)
    for dim in (1, 2, 3):
        actual = results(tensors | {name: far_apart(tensors[name], dim)})
        for key, value in expected.items():
            torch.testing.assert_close(actual[key], value)


# The compiled unfold and others: offsets of 32 bits.
@pytest.mark.parametrize("device", [ON_GPU], indirect=True)
@pytest.mark.parametrize("options", [{}, {"dilation": 2}], ids=["fast", "general"])
def test_more_than_two_to_the_31_elements(options: dict, device: str) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = False  # it takes a while here
    B, C, H, W = 1, 33, 8192, 8192
    assert B * C * H * W > 2**31
    image = torch.empty(B, C, H, W, dtype=BF16, device=device).normal_()
    weights = torch.tensor([0.5, -1.0, 2.0], dtype=BF16, device=device)
    spatial = weights.reshape(1, 3, 1, 1).expand(B, 3, H, W)
    leaf = image.requires_grad_()
    output = kpnops.decoupled_filter(leaf, spatial, kernel_size=(1, 3), **options)
    (gradient,) = torch.autograd.grad(output, leaf, output.detach())
    d = options.get("dilation", 1)
    for c in (0, 31, 32):  # the last one lies beyond 2^31
        padded = F.pad(image[:, c].detach().float(), (d, d))
        expected = sum(weights[t].float() * padded[..., t * d : t * d + W] for t in range(3))
        torch.testing.assert_close(output[:, c].detach(), expected.bfloat16())
        padded = F.pad(output[:, c].detach().float(), (d, d))
        expected = sum(weights[2 - t].float() * padded[..., t * d : t * d + W] for t in range(3))
        torch.testing.assert_close(gradient[:, c], expected.bfloat16())
