"""From arrays to what the network takes, and back."""

from typing import TypeVar, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dkpn.tiles import encoded

Image = TypeVar("Image", np.ndarray, Tensor)

_DTYPES = (torch.uint8, torch.uint16)


def image_planes(image: np.ndarray | Tensor) -> Tensor:
    """Check an image of any accepted kind, and bring its channels to the front.

    Args:
        image: sRGB-encoded; numpy (H, W, 3), or torch (3, H, W) or (B, 3, H, W); uint8, uint16, or
            floating point in [0, 1].

    Returns:
        (B, 3, H, W), of the image's dtype and on its device; where possible not a copy.

    Raises:
        TypeError: ``image`` is neither array nor tensor, or of another dtype.
        ValueError: another layout, no pixels, NaN, or values outside [0, 1].
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(
                f"image: expected an array (H, W, 3), got shape {image.shape}; drop an alpha "
                "channel, repeat a grey one, pass images one by one or as a torch batch"
            )
        if image.dtype == np.uint16 or image.dtype == np.uint8 or image.dtype.kind == "f":
            # Tensors are made of native numbers only, and of none that run backwards.
            image = np.require(image, image.dtype.newbyteorder("="), ["C", "W"])
            batch = rearrange(torch.from_numpy(image), "h w c -> 1 c h w")
        else:
            raise TypeError(f"image: expected uint8, uint16 or floating point, got {image.dtype}")
    elif isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or image.numel() == 0:
            raise ValueError(
                "image: expected a tensor (3, H, W) or (B, 3, H, W), "
                f"got shape {tuple(image.shape)}"
            )
        batch = image.reshape(-1, *image.shape[-3:])
        if batch.dtype not in _DTYPES and not batch.is_floating_point():
            raise TypeError(f"image: expected uint8, uint16 or floating point, got {image.dtype}")
    else:
        raise TypeError(
            f"image: expected a numpy array or a torch tensor, got {type(image).__name__}; "
            "dkpn.photos.read_photo(path).pixels reads a photo"
        )
    if batch.is_floating_point():
        low, high = float(batch.min()), float(batch.max())
        # Written so that NaN fails as well.
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(
                f"image: expected sRGB-encoded values in [0, 1], got {low:g} to {high:g}; "
                "divide 8-bit values by 255, or pass them as uint8"
            )
    return batch


def encoded_batch(image: np.ndarray | Tensor) -> Tensor:
    """Bring an image of any kind that :func:`image_planes` accepts into the network's form.

    Returns:
        (B, 3, H, W), float32, sRGB-encoded in [0, 1], on the image's device.
    """
    return encoded(image_planes(image))


def in_layout_of(image: Image, result: Tensor) -> Image:
    """Give a result (B, 3, H, W) the kind, layout and device of the image it was made from."""
    if isinstance(image, Tensor):
        shaped = result.reshape(image.shape).to(image.device)
        return cast(Image, shaped)
    array = np.ascontiguousarray(rearrange(result, "1 c h w -> h w c").cpu().numpy())
    return cast(Image, array)
