"""Cases: names, memory floors, tensors, and which are run."""

import pytest
import torch

from bench.cases import (
    BACKWARD,
    CHANNELS_LAST,
    CPU_DTYPES,
    DDF_SHAPES,
    FORWARD,
    FORWARD_BACKWARD,
    GPU_DTYPES,
    SOFTMAX,
    Case,
    all_cases,
    as_dtype,
    backward_bytes,
    default_cpu_cases,
    make_tensors,
    minimal_bytes,
)

CPU = torch.device("cpu")


# By hand, float32. Forward, C=3, K=3, per pixel: 9 taps 36 + gain 12 + input 12 + result 12 = 72.
# Backward: input 12, cotangent 12, taps 36, gain 12; gradients 12 + 36 + 12: 132. And so on.
@pytest.mark.parametrize(
    ("channels", "kernel_size", "channel_filter", "forward", "backward"),
    [
        (3, 3, "pixel", 72, 132),
        (3, 5, "pixel", 136, 260),
        (64, 3, "pixel", 804, 1352),
        (64, 5, "pixel", 868, 1480),
        (64, 3, "image", 548, 840),
        (64, 5, "image", 612, 968),
    ],
)
def test_minimal_bytes_per_pixel_in_float32(
    channels, kernel_size, channel_filter, forward, backward
):
    case = Case(2, channels, 40, 30, kernel_size, channel_filter)
    pixels = 2 * 40 * 30
    # A filter per image is C*K*K numbers for each image, whatever the number of pixels.
    filters = 2 * channels * kernel_size**2 * 4 if channel_filter == "image" else 0
    assert minimal_bytes(case, FORWARD) == forward * pixels + filters
    assert backward_bytes(case) == backward * pixels + 2 * filters
    assert minimal_bytes(case, BACKWARD) == backward_bytes(case)
    both = minimal_bytes(case, FORWARD_BACKWARD)
    assert both == (forward + backward) * pixels + 3 * filters


def test_minimal_bytes_count_each_tensor_in_its_own_type():
    case = Case(1, 3, 8, 8, 3, "pixel", "float32", "bfloat16")
    # 9 taps and 3 gains of 2 bytes, 3 inputs and 3 results of 4 bytes.
    assert minimal_bytes(case, FORWARD) == 8 * 8 * (18 + 6 + 12 + 12)


def test_default_cases_are_the_four_that_the_goals_refer_to():
    assert [case.name for case in default_cpu_cases()] == [
        "1x3x512x512-K3-pixel-float32",
        "1x3x512x512-K5-pixel-float32",
        "1x32x256x256-K3-pixel-float32",
        "1x64x128x128-K5-pixel-float32",
    ]


@pytest.mark.parametrize("dtypes", [CPU_DTYPES, GPU_DTYPES])
def test_all_cases_are_complete_and_differ(dtypes):
    cases = all_cases(dtypes)
    assert len({case.name for case in cases}) == len(cases)
    # 3 sizes x 2 batches x 5 kernels and the one with 64 channels; filters per pixel and per image.
    assert len(cases) == 2 * (31 * len(dtypes) + len(DDF_SHAPES))
    assert Case(4, 3, 2160, 3840, 21, "image") in cases
    assert Case(1, 64, 512, 512, 5, "pixel", *dtypes[-1]) in cases
    assert Case(32, 256, 7, 7, 3, "image") in cases


@pytest.mark.parametrize("channel_filter", ["pixel", "image"])
@pytest.mark.parametrize("dtypes", GPU_DTYPES)
def test_tensors_have_the_sizes_that_the_bytes_are_counted_from(channel_filter, dtypes):
    case = Case(2, 5, 7, 6, 3, channel_filter, *dtypes)
    tensors = make_tensors(case, CPU)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    assert sizes == [
        case.input_bytes,
        case.spatial_filter_bytes,
        case.channel_filter_bytes,
        case.result_bytes,
    ]
    assert sum(sizes) == minimal_bytes(case, FORWARD)


def test_tensors_are_the_same_for_the_same_seed_only():
    case = Case(1, 3, 4, 4, 3)
    first, again, other = (make_tensors(case, CPU, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.input, other.input)


def test_layout_is_that_of_the_case():
    tensors = make_tensors(Case(2, 5, 7, 6, 3, layout=CHANNELS_LAST), CPU)
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)
    plain = make_tensors(Case(2, 5, 7, 6, 3), CPU)
    assert all(torch.equal(a, b) for a, b in zip(tensors, plain, strict=True))


def test_name_tells_types_layout_and_softmax():
    case = Case(1, 3, 8, 8, 5, "image", "float32", "bfloat16", CHANNELS_LAST, SOFTMAX)
    assert case.name == "1x3x8x8-K5-image-bfloat16+float32-channels_last-softmax"


@pytest.mark.parametrize(
    "wrong", [{"channel_filter": "row"}, {"layout": "strided"}, {"normalize": "sum"}]
)
def test_unknown_values_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Case(1, 3, 8, 8, 5, **wrong)


def test_unknown_dtype_is_named():
    with pytest.raises(ValueError, match="'float33' is not the name of a torch data type"):
        as_dtype("float33")
