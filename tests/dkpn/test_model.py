import math

import pytest
import torch

from dkpn import DKPN, DKPNConfig
from dkpn.color import srgb_to_linear
from dkpn.heads import FilterHead
from dkpn.losses import LossConfig, reconstruction_loss
from dkpn.model import InverseResponse

TINY = DKPNConfig(
    width=8,
    pooled_width=8,
    channel_multipliers=(1, 2),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)
HEADS = [
    ("gain", "softmax"),
    ("gain", "exp"),
    ("mix", "softmax"),
    ("mix", "exp"),
    ("per-image", "exp"),
    ("undecoupled", "exp"),
    ("feature", "softmax"),
    ("preliminary", "softmax"),
]


def tiny(seed=0, op="fused", **fields):
    torch.manual_seed(seed)
    values = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | fields
    return DKPN(DKPNConfig(**values), op)


def photo(*size, seed=0, batch=2):
    # 8-bit values, of which some are clipped at either end
    image = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
    return (image.clamp(0, 1) * 255).round() / 255


def shake(model, seed=1, scale=0.1):
    """Move all weights off their start, where many of them are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(("head", "taps"), HEADS)
def test_shapes_are_those_of_the_docstring(head, taps):
    output = tiny(head=head, taps=taps)(photo(13, 22))
    spatial = {"undecoupled": 75, "preliminary": None}.get(head, 25)
    channel = {
        "gain": (2, 3, 13, 22),
        "mix": (2, 3, 3, 13, 22),
        "per-image": (2, 3, 25),
        "feature": (2, 16, 13, 22),
    }.get(head)
    assert output.result.shape == output.preliminary.shape == (2, 3, 13, 22)
    assert output.masks.shape == (2, 6, 13, 22)
    if spatial is None:
        assert output.spatial_filter is None
    else:
        assert output.spatial_filter is not None
        assert output.spatial_filter.shape == (2, spatial, 13, 22)
    if channel is None:
        assert output.channel_filter is None
    else:
        assert output.channel_filter is not None
        assert output.channel_filter.shape == channel
    assert output.result.dtype == torch.float32


@pytest.mark.parametrize(("head", "taps"), HEADS)
def test_an_untrained_network_returns_the_photo_decoded_as_srgb(head, taps):
    image = photo(16, 16)
    model = tiny(head=head, taps=taps)
    with torch.inference_mode():
        output = model(image)
    decoded = srgb_to_linear(image)
    # The starting black level, and the floor under black that is smaller still.
    tolerance = 1.2 * InverseResponse.START_BLACK
    torch.testing.assert_close(output.preliminary, decoded, rtol=0, atol=tolerance)
    # The taps off the centre hold DELTA_LEAK in all, each of two other channels MIX_LEAK; no two
    # values differ by more than 1.
    leak = model.DELTA_LEAK + (2.1 * FilterHead.MIX_LEAK if head == "mix" else 0.0)
    torch.testing.assert_close(output.result, output.preliminary, rtol=0, atol=leak)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 1), (9, 31)])
def test_any_size_works_and_the_padding_is_cropped(size):
    output = shake(tiny())(photo(*size))
    assert output.result.shape[-2:] == size
    assert torch.isfinite(output.result).all()


def test_an_image_repeated_at_its_right_and_bottom_edge_gives_the_same_filters():
    """Padding inside is replication: a photo padded so outside is the same to the backbone."""
    model = shake(tiny())
    image = photo(7, 5)
    padded = torch.nn.functional.pad(image, (0, 3, 0, 1), mode="replicate")
    with torch.inference_mode():
        # The pooled branch sees other shares in the padded photo, so it is given the same ones.
        pooled = model.pool(image)
        expected, actual = model(image), model(padded, pooled)
    torch.testing.assert_close(
        actual.spatial_filter[..., :7, :5], expected.spatial_filter, rtol=1e-4, atol=1e-6
    )  # float32 convolutions of two sizes may sum in another order


@pytest.mark.parametrize(("head", "taps"), HEADS)
def test_results_are_positive_finite_and_bounded(head, taps):
    model = shake(tiny(head=head, taps=taps, max_gain_stops=5.0), scale=3.0)
    image = photo(12, 12)
    with torch.inference_mode():
        output = model(image)
    assert torch.isfinite(output.result).all()
    assert (output.result >= 0).all()
    if head == "gain" and taps == "softmax":
        assert output.result.max() <= 2.0**5 * (1 + 1e-5)  # the preliminary result ends at 1
        ones = output.spatial_filter.sum(1)
        torch.testing.assert_close(ones, torch.ones_like(ones), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("head", "taps"), HEADS)
def test_fused_and_naive_filters_train_to_the_same_numbers(head, taps):
    image, truth = photo(12, 14), 2.0 * srgb_to_linear(photo(12, 14))
    losses, weights = [], []
    for op in ("fused", "naive"):
        model = shake(tiny(op=op, head=head, taps=taps), scale=0.02)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            loss = reconstruction_loss(model(image), image, truth, LossConfig()).total
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    start = torch.nn.utils.parameters_to_vector(
        shake(tiny(head=head, taps=taps), scale=0.02).parameters()
    ).detach()
    # Both sum 25 products in float32, in another order; three steps pass that on.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    difference = (weights[0] - weights[1]).norm() / (weights[1] - start).norm()
    assert difference < 1e-3


def test_every_parameter_learns():
    for head, taps in HEADS:
        model = shake(tiny(head=head, taps=taps))
        image = photo(16, 16)
        truth = 2.0 * srgb_to_linear(image)
        reconstruction_loss(model(image), image, truth, LossConfig()).total.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_large_photos_are_pooled_at_the_size_of_training_views():
    model = shake(tiny())
    small = photo(model.POOLED_SIDE // 2, model.POOLED_SIDE // 4, batch=1)
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    with torch.inference_mode():
        reduced = torch.nn.functional.avg_pool2d(large, 2)
        assert torch.equal(model.pool(large), model.pooled(reduced))
        assert torch.equal(model.pool(small), model.pooled(small))
        expected, actual = model(small), model(small, model.pool(small))
    assert torch.equal(expected.result, actual.result)


def test_the_response_curve_rises_and_ends_at_the_clip_level():
    torch.manual_seed(0)
    curve = InverseResponse(TINY)
    values = torch.linspace(0, 1, 256).expand(64, 3, 1, -1)
    with torch.no_grad():
        curve.predict.weight.normal_(std=3.0)
        light = curve(values, torch.randn(64, TINY.pooled_width)).exp()
    torch.testing.assert_close(light[..., -1], torch.ones_like(light[..., -1]))
    # A steep curve is flat, to float32, near its black level; it never falls by more than that.
    assert (light.diff(dim=-1) >= -1e-6 * light[..., 1:]).all()
    assert (light[..., 128] < light[..., -1]).all()


@pytest.mark.parametrize("curve", ["sigmoid", "gamma", "srgb"])
def test_the_response_curve_can_be_that_of_a_camera(curve):
    """With the right numbers, the preliminary result inverts each family of the virtual camera."""
    from dkpn.camera import Camera, inverse_response_curve

    power = {"sigmoid": 0.9, "gamma": 2.2, "srgb": 1.0}[curve]
    camera = Camera(1.0, 0.01, curve, power, 0.6, 0.0, 0.0, 95, 0)
    values = torch.linspace(0, 1, 256).expand(1, 3, 1, -1)[..., 8:]
    expected = inverse_response_curve(values, camera)
    module = InverseResponse(TINY)
    pooled = torch.zeros(1, TINY.pooled_width)
    optimizer = torch.optim.LBFGS(
        [module.predict.bias], lr=1.0, max_iter=200, line_search_fn="strong_wolfe"
    )

    def error():
        optimizer.zero_grad()
        loss = (module(values, pooled) - expected.log()).square().mean()
        loss.backward()
        return loss

    optimizer.step(error)
    worst = (module(values, pooled) - expected.log()).abs().max().item()
    # Seven numbers for the whole curve: an eighth of a stop at the worst value.
    assert worst < math.log(2.0) / 8


def test_infer_is_forward():
    model = shake(tiny())
    image = photo(6, 9)
    with torch.inference_mode():
        # One image at a time: a batch's convolutions may sum in another order.
        expected = torch.cat([model(picture[None]).result for picture in image])
    assert torch.equal(model.infer(image), expected)


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, "image.*uint8.*infer"),
        (torch.zeros(3, 4, 4), ValueError, r"image.*\(B, 3, H, W\).*\(3, 4, 4\)"),
        (torch.zeros(1, 4, 4, 4), ValueError, r"image.*\(1, 4, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), ValueError, r"image.*\(1, 3, 0, 4\)"),
    ],
)
def test_wrong_input_names_what_was_expected(image, error, text):
    with pytest.raises(error, match=text):
        tiny()(image)


def test_unknown_op_is_an_error():
    with pytest.raises(ValueError, match=r"op.*fused.*naive.*eager"):
        tiny(op="eager")


@pytest.mark.parametrize(("head", "taps"), HEADS)
def test_autocast_keeps_radiance_in_float32_and_close_to_it(head, taps):
    """Training on a GPU runs the network in bfloat16; the curve and the filtered image are not."""
    model = shake(tiny(head=head, taps=taps), scale=0.02)
    image = photo(12, 12)
    expected = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(image)
    actual.result.sum().backward()
    assert actual.result.dtype == actual.preliminary.dtype == torch.float32
    # Filters are rounded to 8 bits or so, after a dozen layers that round likewise.
    error = (actual.result - expected.result).norm() / expected.result.norm()
    assert error < 0.05
    assert torch.equal(actual.preliminary, expected.preliminary)


FUSED = [
    {},
    {"kernel_size": 1},
    {"kernel_size": 7, "unshuffle": 1},
    {"kernel_size": 3, "unshuffle": 3},
    {"kernel_size": 9, "unshuffle": 4, "channel_multipliers": (1,)},
]


def fused_pair(**fields):
    """The same network twice: one that stores its filters, one that does not."""
    if fields.get("channel_multipliers") == (1,):
        fields |= {"encoder_blocks": (1,), "decoder_blocks": ()}
    stored = shake(tiny(**fields), scale=0.05)
    fused = DKPN(stored.config, head="fused")
    fused.load_state_dict(stored.state_dict())  # strict: the same names and shapes
    return stored, fused


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        pytest.param(fields, size, marks=[pytest.mark.slow] * (bool(fields) and size != (5, 9)))
        for fields in FUSED
        for size in [(12, 14), (5, 9), (1, 1)]
    ],
    ids=str,
)
def test_the_fused_head_gives_the_same_results_and_gradients(fields, size):
    stored, fused = fused_pair(**fields)
    image, truth = photo(*size), 2.0 * srgb_to_linear(photo(*size))
    outputs, gradients = [], []
    for model in (stored, fused):
        output = model(image)
        reconstruction_loss(output, image, truth, LossConfig()).total.backward()
        outputs.append(output)
        there = (parameter.grad for parameter in model.parameters())
        gradients.append(torch.cat([grad.flatten() for grad in there if grad is not None]))
    assert outputs[1].spatial_filter is None
    for name in ("result", "preliminary", "channel_filter"):
        expected, actual = (getattr(output, name) for output in outputs)
        # Sums in another order, after a dozen layers: some hundred roundings of float32.
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)
    difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert difference < 1e-4


def test_the_fused_head_under_autocast():
    _, fused = fused_pair()
    image = photo(12, 12)
    with torch.inference_mode():  # nothing that a later training step needs may come from here
        expected = fused(image)
    with torch.autocast("cpu", torch.bfloat16):
        actual = fused(image)
    actual.result.sum().backward()
    assert actual.result.dtype == torch.float32
    error = (actual.result - expected.result).norm() / expected.result.norm()
    assert error < 0.05  # as with filters that are stored, see above


@pytest.mark.parametrize(
    ("fields", "op", "text"),
    [
        ({"head": "per-image", "taps": "exp"}, "fused", r'head.*gain.*per-image.*"stored"'),
        ({"head": "undecoupled", "taps": "exp"}, "fused", r'head.*gain.*undecoupled.*"stored"'),
        ({"taps": "exp"}, "fused", r'head.*softmax.*exp.*"stored"'),
        ({}, "naive", r'head.*op="fused".*naive.*"stored"'),
    ],
)
def test_the_fused_head_names_what_it_does_not_go_with(fields, op, text):
    config = tiny(**fields).config
    with pytest.raises(ValueError, match=text):
        DKPN(config, op, head="fused")


def test_unknown_head_is_an_error():
    with pytest.raises(ValueError, match=r"head.*stored.*fused.*tiled"):
        DKPN(TINY, head="tiled")
