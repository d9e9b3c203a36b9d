"""What a call on meta tensors of given shapes would launch."""

import torch

from kpnops._decoupled_filter.call import Call, Gradients
from kpnops._decoupled_filter.geometry import Window
from kpnops._decoupled_filter.triton_backend import plan_backward, plan_forward


def plans(
    shape,
    *,
    form="pixel",
    groups=1,
    needs=(True, True, True),
    combine="mul",
    softmax=False,
    output_channels=None,
    dtype=torch.float32,
    **options,
):
    """Launches of the forward and of the backward; ``options`` are those of ``Window``.

    ``form`` is "none", "image", "pixel", "mix" (to ``output_channels``, those of the input unless
    given), "shared" or "shared mix": a filter of the last two kinds that all images share.
    """
    window = Window(**options)
    B, C, H, W = shape
    Ho, Wo = (
        -(-size // step) * window.scale for size, step in zip((H, W), window.stride, strict=True)
    )
    Co = output_channels or C

    def meta(*sizes):
        return torch.empty(sizes, dtype=dtype, device="meta")

    image = meta(*shape)
    spatial = meta(B, groups * window.taps, Ho, Wo)
    channel = {
        "none": None,
        "image": meta(B, C, window.taps),
        "pixel": meta(B, C, Ho, Wo),
        "shared": meta(1, C, Ho, Wo),
        "mix": meta(B, Co, C, Ho, Wo),
        "shared mix": meta(1, Co, C, Ho, Wo),
    }[form]
    tensors = (image, spatial, channel)
    grads = [
        torch.empty_like(tensor) if need and tensor is not None else None
        for tensor, need in zip(tensors, needs, strict=True)
    ]
    call = Call(*tensors, window, combine, softmax)
    output = meta(*call.output_shape)
    forward = plan_forward(call, output)
    backward = plan_backward(call, output, Gradients(*grads))
    return forward.launches, backward.launches
