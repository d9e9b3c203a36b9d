"""What users of other implementations have today, against the call that takes its place.

Each "before" is written here in plain PyTorch from the formula that the other project publishes;
`docs/decoupled_filter.md` shows the same pairs to those who move.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kpnops
from kpnops import compat
from tests.budgets import FLOAT64_BUDGET
from tests.routes import COMPILED_ROUTES

B = 2


@pytest.fixture(params=COMPILED_ROUTES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def draw(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes
    ]


def with_gradients(call: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of all operands, for a random cotangent."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    output = call(*leaves)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(output, leaves, cotangent.to(output.device))
    return [output.detach(), *gradients]


def assert_replaces(
    after: Callable[..., Tensor], before: Callable[..., Tensor], *operands: Tensor
) -> None:
    """Both calls give the same numbers, and the same gradients for every operand."""
    results = [with_gradients(call, list(operands)) for call in (before, after)]
    for expected, actual in zip(*results, strict=True):
        assert actual.shape == expected.shape
        error = (actual - expected).norm() / expected.norm()
        assert error.item() <= FLOAT64_BUDGET.relative_l2


def neighbours(image: Tensor, kernel_size: int, dilation: int = 1, stride: int = 1) -> Tensor:
    """What each tap of an odd window reads, zeros outside: (B, C, K*K, ceil(H/s), ceil(W/s))."""
    H, W = image.shape[2:]
    reach = kernel_size // 2 * dilation
    padded = F.pad(image, (reach, reach, reach, reach))
    starts = [step * dilation for step in range(kernel_size)]
    rows = [padded[:, :, start : start + H : stride] for start in starts]
    return torch.stack([row[..., s : s + W : stride] for row in rows for s in starts], dim=2)


def plain_ddf(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int,
    dilation: int,
    stride: int,
    kernel_combine: str,
) -> Tensor:
    """Zhou et al. 2021: the product or the sum of both filters, applied around each pixel."""
    H, W = features.shape[2:]
    columns = neighbours(features, kernel_size, dilation, stride)
    columns = columns[..., : H // stride, : W // stride]
    channel, spatial = channel_filter.flatten(2)[..., None, None], spatial_filter[:, None]
    weights = channel * spatial if kernel_combine == "mul" else channel + spatial
    return (columns * weights).sum(dim=2)


@pytest.mark.parametrize("kernel_combine", ["mul", "add"])
@pytest.mark.parametrize(
    ("kernel_size", "dilation", "stride"),
    [(3, 1, 1), (3, 2, 1), (5, 1, 1), (3, 1, 2), (3, 8, 1)],  # the last one kills DDF's process
)
def test_ddf(
    device: str, kernel_size: int, dilation: int, stride: int, kernel_combine: str
) -> None:
    taps, H, W = kernel_size**2, 5, 7  # odd, so that a stride of 2 leaves a row and a column out
    operands = draw(
        device,
        (B, 3, H, W),
        (B, 3, kernel_size, kernel_size),
        (B, taps, H // stride, W // stride),
    )
    arguments = (kernel_size, dilation, stride, kernel_combine)
    assert_replaces(
        lambda x, channel, spatial: compat.ddf(x, channel, spatial, *arguments),
        lambda x, channel, spatial: plain_ddf(x, channel, spatial, *arguments),
        *operands,
    )


def test_ddf_with_groups_folded_into_the_batch(device: str) -> None:
    def before(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        out = plain_ddf(
            x.reshape(B * 2, 2, 4, 5),
            channel.reshape(B * 2, 2, 3, 3),
            spatial.reshape(B * 2, 9, 4, 5),
            *(3, 1, 1, "mul"),
        )
        return out.reshape(B, 4, 4, 5)

    operands = draw(device, (B, 4, 4, 5), (B, 4, 3, 3), (B, 2 * 9, 4, 5))
    assert_replaces(compat.ddf, before, *operands)  # the groups as they are


class PlainFilterNorm(nn.Module):
    """Zhou et al. 2021, filter normalization: standardise the taps of each filter, then scale."""

    def __init__(self, filters: int, kernel_size: int, learned: bool):
        super().__init__()
        self.filters, self.std = filters, 2**0.5 / kernel_size
        if learned:
            self.std = nn.Parameter(torch.randn(filters * kernel_size**2))

    def forward(self, x: Tensor) -> Tensor:  # (B, filters*K*K, H, W)
        taps = x.unflatten(1, (self.filters, -1))
        taps = (taps - taps.mean(2, keepdim=True)) / (taps.std(2, keepdim=True) + 1e-10)
        scale = self.std if isinstance(self.std, float) else self.std[:, None, None]
        return taps.flatten(1, 2) * scale


class PlainDDFPack(nn.Module):
    """Zhou et al. 2021, the DDF module, with the parameter names of a trained checkpoint."""

    def __init__(self, channels: int, kernel_size: int, head: int):
        super().__init__()
        self.kernel_size, self.head = kernel_size, head
        self.spatial_branch = nn.Sequential(
            nn.Conv2d(channels, head * kernel_size**2, 1),
            PlainFilterNorm(head, kernel_size, learned=False),
        )
        self.channel_branch = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 5, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 5, channels * kernel_size**2, 1),
            PlainFilterNorm(channels, kernel_size, learned=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        in_head, K = x.shape[1] // self.head, self.kernel_size
        out = plain_ddf(
            x.reshape(-1, in_head, *x.shape[2:]),
            self.channel_branch(x).reshape(-1, in_head, K, K),
            self.spatial_branch(x).reshape(-1, K * K, *x.shape[2:]),
            *(K, 1, 1, "mul"),
        )
        return out.reshape(x.shape)


@pytest.mark.parametrize("head", [1, 2])
def test_ddf_module_with_its_state(device: str, head: int) -> None:
    before = PlainDDFPack(10, 3, head).to(device, torch.float64)
    after = compat.DDFPack(10, 3, head=head).to(device, torch.float64)
    after.load_state_dict(before.state_dict())
    assert_replaces(after, before, *draw(device, (B, 10, 4, 5)))


def plain_carafe(features: Tensor, masks: Tensor, kernel_size: int, groups: int, u: int) -> Tensor:
    """Wang et al. 2019, reassembly; the channels of a mask are (group, row, column)."""
    columns = neighbours(features, kernel_size).repeat_interleave(u, 3).repeat_interleave(u, 4)
    columns = columns.unflatten(1, (groups, -1))
    return (columns * masks.unflatten(1, (groups, 1, -1))).sum(dim=3).flatten(1, 2)


def plain_kernel_normalizer(encoded: Tensor, kernel_size: int, u: int) -> Tensor:
    """Wang et al. 2019, kernel normalizer: a softmax over the taps, on the fine grid."""
    masks = F.pixel_shuffle(encoded, u)
    return masks.unflatten(1, (-1, kernel_size**2)).softmax(dim=2).flatten(1, 2)


CARAFE_CASES = [(3, 1, 2), (5, 1, 2), (3, 2, 3), (3, 2, 1)]


@pytest.mark.parametrize(("kernel_size", "groups", "u"), CARAFE_CASES)
def test_carafe(device: str, kernel_size: int, groups: int, u: int) -> None:
    operands = draw(device, (B, 4, 3, 4), (B, groups * kernel_size**2, 3 * u, 4 * u))
    assert_replaces(
        lambda x, masks: kpnops.kernel_filter(x, masks, kernel_size=kernel_size, scale_factor=u),
        lambda x, masks: plain_carafe(x, masks, kernel_size, groups, u),
        *operands,
    )


@pytest.mark.parametrize(("kernel_size", "groups", "u"), CARAFE_CASES)
def test_carafe_with_its_softmax(device: str, kernel_size: int, groups: int, u: int) -> None:
    def before(x: Tensor, encoded: Tensor) -> Tensor:
        masks = plain_kernel_normalizer(encoded, kernel_size, u)
        return plain_carafe(x, masks, kernel_size, groups, u)

    def after(x: Tensor, encoded: Tensor) -> Tensor:
        options = {"kernel_size": kernel_size, "scale_factor": u, "normalize": "softmax"}
        return kpnops.kernel_filter(x, F.pixel_shuffle(encoded, u), **options)

    operands = draw(device, (B, 4, 3, 4), (B, groups * kernel_size**2 * u * u, 3, 4))
    assert_replaces(after, before, *operands)


def plain_involution(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Li et al. 2021, the pseudo-code; weight is (B, G, Kh, Kw, Ho, Wo)."""
    _, G, Kh, Kw, Ho, Wo = weight.shape
    padding = (Kh // 2 * dilation, Kw // 2 * dilation)
    columns = F.unfold(x, (Kh, Kw), dilation, padding, stride)
    columns = columns.view(x.shape[0], G, x.shape[1] // G, Kh * Kw, Ho, Wo)
    return (columns * weight.flatten(2, 3).unsqueeze(2)).sum(dim=3).flatten(1, 2)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation"),
    [((3, 3), 1, 1), ((3, 3), 2, 1), ((3, 3), 1, 2), ((1, 5), 1, 1)],
)
def test_involution(device: str, kernel_size: tuple[int, int], stride: int, dilation: int) -> None:
    def after(x: Tensor, weight: Tensor) -> Tensor:
        return kpnops.kernel_filter(
            x, weight.flatten(1, 3), kernel_size=kernel_size, stride=stride, dilation=dilation
        )

    operands = draw(device, (B, 4, 4, 6), (B, 2, *kernel_size, 4 // stride, 6 // stride))
    assert_replaces(
        after, lambda x, weight: plain_involution(x, weight, stride, dilation), *operands
    )


def test_involution_on_odd_sizes_with_a_stride(device: str) -> None:
    # Its filters come from nn.AvgPool2d(2): floor(H / 2) rows, where its unfold gives ceil(H / 2).
    def formula(x: Tensor, weight: Tensor) -> Tensor:
        columns = neighbours(x, 3, stride=2)[..., :2, :3].unflatten(1, (2, -1))
        return (columns * weight.flatten(2, 3).unsqueeze(2)).sum(dim=3).flatten(1, 2)

    def after(x: Tensor, weight: Tensor) -> Tensor:
        return kpnops.kernel_filter(x, weight.flatten(1, 3), kernel_size=3, stride=2)

    operands = draw(device, (B, 4, 5, 7), (B, 2, 3, 3, 2, 3))
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        plain_involution(*operands, stride=2)
    assert_replaces(after, formula, *operands)


def test_unfold_loop_over_frames(device: str) -> None:
    N, C, H, W, K = 2, 3, 4, 5, 3

    def before(frames: Tensor, logits: Tensor) -> Tensor:
        out = torch.zeros_like(frames[:, 0])
        for n in range(N):
            columns = F.unfold(frames[:, n], K, padding=K // 2).view(-1, C, K * K, H, W)
            out = out + (columns * logits[:, n].softmax(dim=1).unsqueeze(1)).sum(dim=2)
        return out / N

    def after(frames: Tensor, logits: Tensor) -> Tensor:
        out = kpnops.kernel_filter(frames.flatten(0, 1), logits.flatten(0, 1), normalize="softmax")
        return out.unflatten(0, (-1, N)).mean(dim=1)

    assert_replaces(after, before, *draw(device, (B, N, C, H, W), (B, N, K * K, H, W)))


def test_one_softmax_over_all_frames(device: str) -> None:
    N, H, W = 2, 4, 5

    def before(frames: Tensor, logits: Tensor) -> Tensor:
        weights = logits.flatten(1, 2).softmax(dim=1).unflatten(1, (N, 9))
        columns = torch.stack([neighbours(frame, 3) for frame in frames.unbind(1)], dim=1)
        return (columns * weights.unsqueeze(2)).sum(dim=(1, 3))

    def after(frames: Tensor, logits: Tensor) -> Tensor:
        weights = logits.flatten(1, 2).softmax(dim=1).view(-1, 9, H, W)
        return kpnops.kernel_filter(frames.flatten(0, 1), weights).unflatten(0, (-1, N)).sum(1)

    assert_replaces(after, before, *draw(device, (B, N, 3, H, W), (B, N, 9, H, W)))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_filter_for_each_frame_and_colour(device: str, batch: int) -> None:
    N, C, H, W, K = 2, 3, 4, 5, 3

    def before(frames: Tensor, core: Tensor) -> Tensor:  # core: (B, N, K*K, C, H, W)
        columns = torch.stack([neighbours(frame, K) for frame in frames.unbind(1)], dim=1)
        return (columns.transpose(2, 3) * core).sum(dim=2).mean(dim=1)

    def after(frames: Tensor, core: Tensor) -> Tensor:
        filters = core.transpose(2, 3).reshape(-1, C * K * K, H, W)
        out = kpnops.kernel_filter(frames.flatten(0, 1), filters, kernel_size=K)
        return out.unflatten(0, (-1, N)).mean(dim=1)

    assert_replaces(after, before, *draw(device, (batch, N, C, H, W), (batch, N, K * K, C, H, W)))


def test_taps_in_the_last_dimensions(device: str) -> None:
    def before(image: Tensor, taps: Tensor) -> Tensor:  # taps: (B, H, W, K, K)
        return torch.einsum("bcthw,bhwt->bchw", neighbours(image, 3), taps.flatten(3))

    def after(image: Tensor, taps: Tensor) -> Tensor:
        planes = taps.flatten(3).movedim(3, 1)
        assert planes.data_ptr() == taps.data_ptr()  # a view
        return kpnops.kernel_filter(image, planes)

    assert_replaces(after, before, *draw(device, (B, 3, 4, 5), (B, 4, 5, 3, 3)))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_padded_copy_before_the_loop(device: str, mode: str) -> None:
    def before(image: Tensor, taps: Tensor) -> Tensor:
        columns = F.unfold(F.pad(image, (1, 1, 1, 1), mode=mode), 3).view(B, 3, 9, 4, 5)
        return (columns * taps.unsqueeze(1)).sum(dim=2)

    after = partial(kpnops.kernel_filter, padding_mode=mode)
    assert_replaces(after, before, *draw(device, (B, 3, 4, 5), (B, 9, 4, 5)))


def test_sum_of_weights_by_filtering_ones(device: str) -> None:
    def before(image: Tensor, taps: Tensor) -> Tensor:  # weights that fall outside do not count
        inside = neighbours(torch.ones_like(image[:, :1]), 3)
        weights = taps.unsqueeze(1)
        return (neighbours(image, 3) * weights).sum(dim=2) / (inside * weights).sum(dim=2)

    def after(image: Tensor, taps: Tensor) -> Tensor:
        ones = torch.ones_like(image[:, :1])
        return kpnops.kernel_filter(image, taps) / kpnops.kernel_filter(ones, taps)

    image, taps = draw(device, (B, 3, 4, 5), (B, 9, 4, 5))
    assert_replaces(after, before, image, taps.exp())


def test_what_an_unfold_loop_keeps_for_its_backward() -> None:
    def kept(call: Callable[..., Tensor], *operands: Tensor) -> float:
        """Elements saved beyond the operands, relative to the image."""
        saved: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            return saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call(*(operand.requires_grad_() for operand in operands))
        for operand in operands:
            saved.pop(operand.untyped_storage().data_ptr(), None)
        return sum(tensor.numel() for tensor in saved.values()) / operands[0].numel()

    def loop(image: Tensor, taps: Tensor, channel: Tensor | None = None) -> Tensor:
        columns = F.unfold(image, 3, padding=1).view(B, 3, 9, 6, 7)
        weights = taps.unsqueeze(1)
        if channel is not None:
            weights = weights * channel[..., None, None]
        return (columns * weights).sum(dim=2)

    operands = draw("cpu", (B, 3, 6, 7), (B, 9, 6, 7), (B, 3, 9))
    assert (kept(loop, *operands[:2]), kept(loop, *operands)) == (9, 2 * 9)
    assert kept(kpnops.decoupled_filter, *operands) == 0


def plain_neighbourhood_weighting(attention: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """Hassani et al. 2023: at a border the window is shifted into the image."""
    H, W = value.shape[2:4]
    rows = []
    for y in range(H):
        top = min(max(y - kernel_size // 2, 0), H - kernel_size)
        for x in range(W):
            left = min(max(x - kernel_size // 2, 0), W - kernel_size)
            window = value[:, :, top : top + kernel_size, left : left + kernel_size].flatten(2, 3)
            rows.append((attention[:, :, y, x, :, None] * window).sum(dim=2))
    return torch.stack(rows, dim=2).unflatten(2, (H, W))


def test_neighbourhood_attention_weights_away_from_the_border(device: str) -> None:
    heads, depth, K = 2, 2, 3

    def before(attention: Tensor, value: Tensor) -> Tensor:  # (B, heads, H, W, ...)
        return plain_neighbourhood_weighting(attention, value, K)[:, :, 1:-1, 1:-1]

    def after(attention: Tensor, value: Tensor) -> Tensor:
        image, taps = (tensor.movedim(4, 2).flatten(1, 2) for tensor in (value, attention))
        out = kpnops.kernel_filter(image, taps, kernel_size=K)
        return out.unflatten(1, (heads, depth)).movedim(2, 4)[:, :, 1:-1, 1:-1]

    operands = draw(device, (B, heads, 4, 5, K * K), (B, heads, 4, 5, depth))
    assert_replaces(after, before, *operands)


def test_neighbourhood_attention_differs_at_the_border() -> None:
    attention, value = draw("cpu", (1, 1, 4, 5, 9), (1, 1, 4, 5, 1))
    shifted = plain_neighbourhood_weighting(attention, value, 3)[..., 0]
    padded = kpnops.kernel_filter(value[..., 0], attention[:, 0].movedim(3, 1))
    same = torch.isclose(shifted, padded)[0, 0]
    interior = torch.zeros_like(same)
    interior[1:-1, 1:-1] = True
    assert torch.equal(same, interior)
