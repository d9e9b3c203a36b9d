"""DKPN: preliminary result, guided encoder-decoder, decoupled head, and their filter."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import kpnops
import kpnops.reference
from dkpn.blocks import EncoderDecoder, PooledBranch, soft_masks
from dkpn.color import srgb_to_linear
from dkpn.config import DKPNConfig
from dkpn.heads import FeatureSpace, FilterHead
from dkpn.infer import Image, image_planes, in_layout_of
from dkpn.tiles import Tile, reconstruct_tiles, tile_side


@dataclass(frozen=True)
class DKPNOutput:
    """What the network made of a batch of B images of H × W pixels.

    Args:
        result: (B, 3, H, W), float32, linear, 1.0 = clip level: the HDR image.
        preliminary: (B, 3, H, W), float32, linear, 1.0 = clip level: the photo through the
            predicted inverse response curve, before the filter.
        masks: (B, 6, H, W) in [0, 1]: soft masks of over-, then of under-exposure, each for R, G,
            B.
        spatial_filter: (B, K², H, W), or (B, 3·K², H, W) with ``head="undecoupled"``: taps. None in
            a network with ``head="fused"``, which never has them, or with ``"preliminary"``.
        channel_filter: (B, 3, H, W) gains with ``head="gain"``, (B, 3, 3, H, W) matrices with
            ``"mix"``, (B, 3, K²) with ``"per-image"``, (B, C, H, W) with ``"feature"``, None with
            ``"undecoupled"`` and ``"preliminary"``.
    """

    result: Tensor
    preliminary: Tensor
    masks: Tensor
    spatial_filter: Tensor | None
    channel_filter: Tensor | None


class InverseResponse(nn.Module):
    """The preliminary module: one inverse response curve, and one black level, for the image.

    ``g(x) = b + (1 - b) exp(log sRGB⁻¹(x) - Σ_k c_k ∫_x^1 hat_k(t) / t dt)``: the pooled branch
    predicts by which factor the slope of log g over log x differs from that of sRGB at a few knots
    x_k, which gives c_k; ``hat_k`` interpolates between them. A bound on the factor keeps the curve
    rising; g(1) = 1. Before training the photo is decoded as sRGB, to ``START_BLACK``.

    Args:
        config: the network's choices (``curve_knots``, ``max_black``, ``dark_floor``,
            ``pooled_width``).
    """

    TABLE_SIZE = 1024
    MAX_LOG_FACTOR = math.log(4.0)  # of the slope at a knot, up or down
    START_BLACK = 1e-3  # black level before training

    def __init__(self, config: DKPNConfig) -> None:
        super().__init__()
        self.dark_floor = config.dark_floor
        self.max_black = config.max_black
        self.start = math.log(self.START_BLACK / (config.max_black - self.START_BLACK))
        self.predict = nn.Linear(config.pooled_width, len(config.curve_knots) + 1)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)
        knots = torch.tensor(config.curve_knots, dtype=torch.float64)
        table = _integrated_hats(knots, config.dark_floor, self.TABLE_SIZE)
        self.register_buffer("table", table.float(), persistent=False)
        self.register_buffer("slope", _srgb_slope(knots).float(), persistent=False)

    def forward(self, image: Tensor, pooled: Tensor) -> Tensor:
        """Linearise an image.

        Args:
            image: (B, 3, H, W), float32, encoded in [0, 1].
            pooled: (B, pooled_width) image vector.

        Returns:
            (B, 3, H, W), float32, the natural logarithm of linear radiance; 0 is the clip level.
        """
        numbers = self.predict(pooled).float()  # (B, knots + 1)
        bound = self.MAX_LOG_FACTOR
        factor = torch.exp(bound * torch.tanh(numbers[:, :-1] / bound))
        coefficients = self.get_buffer("slope") * (factor - 1.0)  # (B, knots)
        black = self.max_black * torch.sigmoid(numbers[:, -1] + self.start)
        floor = self.dark_floor
        value = image.clamp(floor, 1.0)
        position = (value - floor) * ((self.TABLE_SIZE - 1) / (1.0 - floor))
        below = position.long().clamp_max(self.TABLE_SIZE - 2)
        table = self.get_buffer("table")
        fraction = position - below
        log_light = srgb_to_linear(value).log()
        # Knot by knot: all of them at once would be several images of this size.
        for hat, coefficient in zip(table, coefficients.unbind(1), strict=True):
            basis = torch.lerp(hat[below], hat[below + 1], fraction)
            log_light = log_light - rearrange(coefficient, "b -> b 1 1 1") * basis
        light = log_light.exp()
        black = rearrange(black, "b -> b 1 1 1")
        return torch.log(black + (1.0 - black) * light)


def _srgb_slope(value: Tensor) -> Tensor:
    """Slope of log sRGB⁻¹(x) over log x: 1 in the linear toe, 2.4 x / (x + 0.055) above it."""
    return torch.where(value <= 0.04045, 1.0, 2.4 * value / (value + 0.055))


def _integrated_hats(knots: Tensor, start: float, size: int) -> Tensor:
    """``∫_x^1 hat_k(t) / t dt`` on ``size`` values x from ``start`` to 1: (knots, size)."""
    steps = 16  # integration steps for each table entry; the error is far below float32's
    fine = torch.linspace(start, 1.0, (size - 1) * steps + 1, dtype=torch.float64)
    interval = torch.bucketize(fine, knots[1:-1], right=True)
    left, right = knots[interval], knots[interval + 1]
    rising = (fine - left) / (right - left)
    hats = torch.zeros(len(knots), len(fine), dtype=torch.float64)
    hats.scatter_(0, interval[None], (1.0 - rising)[None])
    hats.scatter_(0, interval[None] + 1, rising[None])
    from_start = torch.cumulative_trapezoid(hats / fine, fine, dim=1)
    from_start = F.pad(from_start, (1, 0))
    return (from_start[:, -1:] - from_start)[:, ::steps].contiguous()


class DKPN(nn.Module):
    """Decoupled kernel prediction network: an 8-bit photo in, an HDR image out.

    ``result = decoupled_filter(preliminary, spatial_filter, channel_filter)``: the preliminary
    result is the photo through a predicted inverse response curve, and an encoder-decoder guided by
    soft masks of over- and under-exposure predicts the filters of each pixel. An untrained network
    returns the photo decoded as sRGB: its curve is sRGB's, its filters are deltas (to
    ``DELTA_LEAK``), its gains are 1.

    Args:
        config: the network's choices.
        op: ``"fused"`` filters with :func:`kpnops.decoupled_filter`, ``"naive"`` with the slow
            :func:`kpnops.reference.decoupled_filter`; same weights, same numbers up to rounding.
        head: ``"stored"`` predicts all filters and then applies them, ``"fused"`` predicts and
            applies them tile by tile with :func:`kpnops.predict_filter` and keeps none: memory no
            longer grows with the taps. Same weights, same numbers up to rounding; for filters of
            gains (``config.head="gain"``) under softmax, and ``op="fused"``.

    Raises:
        ValueError: ``op`` or ``head`` is neither, or ``head="fused"`` does not go with the rest.

    References:
        Cao et al., ACM TOMM 19(2s), 2023 (the abstract); :mod:`dkpn.config` lists what is our own.
    """

    DELTA_LEAK = 0.02  # sum of all taps but the centre one before training
    # Longest side that the pooled branch sees. A photo of many megapixels is softer, pixel for
    # pixel, than any training view; reduced so far it is about as sharp as they are.
    POOLED_SIDE = 512

    def __init__(
        self,
        config: DKPNConfig | None = None,
        op: Literal["fused", "naive"] = "fused",
        head: Literal["stored", "fused"] = "stored",
    ) -> None:
        super().__init__()
        if op not in ("fused", "naive"):
            raise ValueError(f'op: expected "fused" or "naive", got {op!r}')
        self.config = config = config or DKPNConfig()
        _check_head(head, op, config)
        self.op = op
        self.stores_filters = head == "stored"
        self.pooled = PooledBranch(config.pooled_width)
        self.preliminary = InverseResponse(config)
        if config.head == "preliminary":
            return
        self.backbone = EncoderDecoder(
            12 * config.unshuffle**2,
            config.channels,
            config.encoder_blocks,
            config.decoder_blocks,
            config.guidance,
            config.pooled_width,
        )
        self.head = FilterHead(config, self.DELTA_LEAK)
        if config.head == "feature":
            self.feature_space = FeatureSpace(config)

    def pool(self, image: Tensor) -> Tensor:
        """What the network knows of an image as a whole: it decides the response curve.

        Args:
            image: (B, 3, H, W) as for :meth:`forward`; one with a side above ``POOLED_SIDE`` is
                reduced to it by averaging, since the network was trained on pictures of that size.

        Returns:
            (B, pooled_width), float32.
        """
        _check_image(image)
        image = image.float()
        height, width = image.shape[-2:]
        longest = max(height, width)
        if longest > self.POOLED_SIDE:
            sides = (max(1, round(side * self.POOLED_SIDE / longest)) for side in (height, width))
            image = F.interpolate(image, tuple(sides), mode="area")
        # The branch that decides the curve for all pixels costs little in float32.
        with torch.autocast(image.device.type, enabled=False):
            return self.pooled(image)

    def forward(self, image: Tensor, pooled: Tensor | None = None) -> DKPNOutput:
        """Reconstruct a batch, with everything that a loss may want.

        Args:
            image: (B, 3, H, W) with H, W ≥ 1, floating point, sRGB-encoded in [0, 1].
            pooled: (B, pooled_width), from :meth:`pool`, of the whole image that ``image`` is a
                tile of; by default that of ``image`` itself.

        Returns:
            The result and the steps to it.

        Raises:
            TypeError: ``image`` is not floating point.
            ValueError: ``image`` has another rank or channel count, or no pixels.
        """
        _check_image(image)
        config = self.config
        if pooled is None:
            pooled = self.pool(image)
        image = image.float()
        masks = soft_masks(image, config.mask_tau, config.mask_squared)
        # Radiance spans more than half precision holds: the curve and the filter stay in float32.
        with torch.autocast(image.device.type, enabled=False):
            log_preliminary = self.preliminary(image, pooled)
        preliminary = log_preliminary.exp()
        if config.head == "preliminary":
            return DKPNOutput(preliminary, preliminary, masks, None, None)
        height, width = image.shape[-2:]
        features = torch.cat((image, 0.25 * log_preliminary + 0.5, masks), dim=1)
        features = _pad_to_multiple(features, config.size_multiple)
        features = F.pixel_unshuffle(features, config.unshuffle)
        padded_masks = _pad_to_multiple(masks, config.size_multiple)
        folded_masks = F.avg_pool2d(padded_masks, config.unshuffle)
        features = self.backbone(features, folded_masks, pooled)
        if self.stores_filters:
            spatial_filter, channel_filter = self.head(features, pooled, (height, width))
            if config.head == "feature":
                lifted = self.feature_space.lift(log_preliminary, masks)
                filtered = self._filter(lifted, spatial_filter, channel_filter)
                result = self.feature_space.project(filtered, preliminary)
            else:
                result = self._filter(preliminary, spatial_filter, channel_filter)
        else:
            spatial_filter = None
            result, channel_filter = self.head.filtered(features, preliminary)
        return DKPNOutput(result, preliminary, masks, spatial_filter, channel_filter)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DKPN":
        """Load a network from a folder in the Hugging Face layout.

        Args:
            folder: holds ``model.safetensors``, with ``config.json`` beside it.

        Returns:
            The network on the CPU, in evaluation mode.

        Raises:
            FileNotFoundError: there is no such folder, or no weights in it.
            ValueError: the file is damaged, or does not fit its configuration.
        """
        from dkpn.checkpoint import load_weights

        return load_weights(folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` to a folder.

        Args:
            folder: created if absent; files of these names are replaced.

        Raises:
            OSError: the folder cannot be made or written to; what was there before is intact.
        """
        from dkpn.checkpoint import save_weights

        save_weights(Path(folder), self)

    @torch.no_grad()
    def infer(
        self,
        image: Image,
        *,
        panorama: bool = False,
        max_memory: float | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Image:
        """Reconstruct an image as it comes from a file, of any size.

        An image too large for the memory is reconstructed in tiles, whose result is that of the
        whole image, see :mod:`dkpn.tiles`. On a GPU the network runs in half precision; response
        curve and filter stay in float32.

        Args:
            image: sRGB-encoded; numpy (H, W, 3), or torch (3, H, W) or (B, 3, H, W); uint8, uint16,
                or floating point in [0, 1]. It may lie on another device than the network.
            panorama: whether the left and right edge of the image meet.
            max_memory: GiB that the network may take, beyond image and result; by default half of
                what is free.
            progress: called with the share of the image that is done.

        Returns:
            float32 of the same kind, layout and device: linear Rec.709, 1.0 = the photo's clip
            level, taken as diffuse white, 203 cd/m².

        Raises:
            TypeError: ``image`` is neither array nor tensor, or of another dtype.
            ValueError: another layout, no pixels, NaN, or values outside [0, 1]; too little memory
                for the smallest tile.
        """
        planes = image_planes(image)
        device = next(self.parameters()).device
        side = tile_side(self.config, max_memory, device)
        results = torch.empty(planes.shape, dtype=torch.float32, device=planes.device)
        for picture, result in zip(planes, results, strict=True):

            def store(tile: Tile, core: Tensor, result: Tensor = result) -> None:
                result[:, tile.top : tile.bottom, tile.left : tile.right] = core

            reconstruct_tiles(self, picture, store, side=side, panorama=panorama, progress=progress)
        return in_layout_of(image, results)

    def _filter(
        self, image: Tensor, spatial_filter: Tensor, channel_filter: Tensor | None
    ) -> Tensor:
        fused = self.op == "fused"
        decoupled_filter = kpnops.decoupled_filter if fused else kpnops.reference.decoupled_filter
        return decoupled_filter(
            image,
            spatial_filter,
            channel_filter,
            kernel_size=self.config.kernel_size,
            padding_mode="replicate",
        )


def _check_head(head: str, op: str, config: DKPNConfig) -> None:
    if head not in ("stored", "fused"):
        raise ValueError(f'head: expected "stored" or "fused", got {head!r}')
    if head == "stored":
        return
    if op != "fused":
        raise ValueError(
            f'head: "fused" needs op="fused", got op={op!r}; the naive filter has to be given its '
            'filters, use head="stored" with it'
        )
    if config.head != "gain" or config.taps != "softmax":
        raise ValueError(
            'head: "fused" needs a configuration with head="gain" and taps="softmax", got '
            f'head="{config.head}" and taps="{config.taps}"; use head="stored" with it'
        )


def _check_image(image: Tensor) -> None:
    if not image.is_floating_point():
        raise TypeError(
            f"image: expected a floating point tensor in [0, 1], got {image.dtype}; "
            "DKPN.infer takes uint8 and uint16"
        )
    if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"image: expected (B, 3, H, W) with pixels, got {tuple(image.shape)}")


def _pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sizes are multiples; works down to 1 × 1."""
    height, width = image.shape[-2:]
    missing = (0, -width % multiple, 0, -height % multiple)
    # A pad of nothing is a copy, and fails in compiled backward passes on CPUs (PyTorch 2.13).
    return F.pad(image, missing, mode="replicate") if any(missing) else image
