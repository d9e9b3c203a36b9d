"""The head and the filter in one, with the taps of no pixel ever stored.

The head is a 3×3 convolution at 1/u of the resolution (``unshuffle``), whose channels are the taps
of u×u pixels. So for each of these u² positions the taps are a 1×1 convolution of 3×3
neighbourhoods of features, on a grid of cells of u×u pixels; and a filter on pixels is one on the
cells of u² images, the pixels at each position of a cell. That is what
:func:`kpnops.predict_filter` does with the frames of a burst: one softmax over the taps of all of
them, and the sum.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import kpnops

__all__ = ["predict_and_filter"]


def predict_and_filter(
    features: Tensor, weight: Tensor, bias: Tensor, image: Tensor, kernel_size: int, unshuffle: int
) -> Tensor:
    """Filter an image, repeated beyond its border, with the softmax of predicted taps.

    Args:
        features: (B, C, h, w) with ``h * unshuffle`` and ``w * unshuffle`` at least the image's
            height and width.
        weight: (K²·u², C, 3, 3), of a convolution with a padding of 1 whose result is shuffled to
            (B, K², h·u, w·u).
        bias: (K²·u²,).
        image: (B, 3, H, W).
        kernel_size: K, odd.
        unshuffle: u.

    Returns:
        (B, 3, H, W).
    """
    height, width = image.shape[-2:]
    h, w = features.shape[-2:]
    u, reach = unshuffle, math.ceil((kernel_size - 1) / 2 / unshuffle)  # in cells
    below, right = (h + reach) * u - height, (w + reach) * u - width
    image = F.pad(image, (reach * u, right, reach * u, below), mode="replicate")
    frames = rearrange(image, "b c (h y) (w x) -> b (y x) c h w", y=u, x=u)
    # The cells that only the image is repeated to have filters too, which are cut off below.
    neighbourhoods = F.unfold(features, 3, padding=1 + reach)
    neighbourhoods = neighbourhoods.unflatten(2, (h + 2 * reach, w + 2 * reach))
    # One row more, for what is a tap on cells but not on pixels: its probability is zero.
    weight = torch.cat((weight.flatten(1), weight.new_zeros(1, weight[0].numel())))
    bias = torch.cat((bias, bias.new_full((1,), -math.inf)))
    filtered = [
        kpnops.predict_filter(
            neighbourhoods,
            weight[rows],
            bias[rows],
            frames,
            kernel_size=2 * reach + 1,
            normalize="softmax",
        )[..., reach : reach + h, reach : reach + w]
        for rows in _rows(kernel_size, u, weight.device).unbind()
    ]
    result = F.pixel_shuffle(torch.stack(filtered, 2).flatten(1, 2), u)
    return result[..., :height, :width]


def _rows(kernel_size: int, unshuffle: int, device: torch.device) -> Tensor:
    """Row of the convolution's weight for each position in a cell (u²), and each frame and tap on
    cells (u²·K'²); one beyond the last row where there is no such tap on pixels."""
    u, radius = unshuffle, (kernel_size - 1) // 2
    reach = math.ceil(radius / u)
    positions = torch.arange(u, device=device)
    cells = torch.arange(-reach, reach + 1, device=device)
    # Along one axis: output position, frame, cell -> tap
    tap = u * cells + positions[:, None] - positions[:, None, None] + radius
    inside = (tap >= 0) & (tap < kernel_size)
    y = rearrange(tap, "a m i -> a 1 m 1 i 1")
    x = rearrange(tap, "b n j -> 1 b 1 n 1 j")
    position = rearrange(u * positions[:, None] + positions, "a b -> a b 1 1 1 1")
    rows = (y * kernel_size + x) * u * u + position
    both = rearrange(inside, "a m i -> a 1 m 1 i 1") & rearrange(inside, "b n j -> 1 b 1 n 1 j")
    rows = torch.where(both, rows, kernel_size**2 * u * u)
    return rearrange(rows, "a b m n i j -> (a b) (m n i j)")
