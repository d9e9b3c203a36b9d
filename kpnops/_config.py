"""What kpnops found on this machine."""

import platform
from collections.abc import Iterable

import torch

from ._decoupled_filter import route
from ._decoupled_filter.geometry import Window
from ._decoupled_filter.validation import check_scale_factor, pair

__all__ = ["show_config"]

Shape = tuple[int, int, int, int]


def show_config(
    shapes: Iterable[Shape] = ((1, 3, 512, 512), (1, 64, 512, 512)),
    *,
    kernel_size: int | tuple[int, int] = 5,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    scale_factor: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> None:
    """Print versions, devices, and the route that :func:`kpnops.decoupled_filter` takes for given
    shapes, without a channel filter or with one for each pixel.

    Args:
        shapes: Shapes ``(B, C, H, W)`` of the input.
        kernel_size: ``K`` or ``(Kh, Kw)``.
        stride: ``s`` or ``(y, x)``.
        dilation: ``d`` or ``(y, x)``.
        scale_factor: ``u``; above 1 the stride is 1.
        dtype: Dtype of the tensors.
        device: Device of the tensors; ``None`` means a CUDA or ROCm GPU if there is one, else the
            CPU.

    Raises:
        TypeError: ``kernel_size``, ``stride`` or ``dilation`` is no int or pair of ints, or
            ``scale_factor`` no int.
        ValueError: One of them is below 1, a scale factor comes with a stride, or a shape does not
            have four positive sizes.

    Example:
        >>> import kpnops
        >>> kpnops.show_config([(1, 3, 256, 256)], kernel_size=3, device="cpu")
        kpnops 0...
        (1, 3, 256, 256), 3x3 taps, torch.float32 on cpu: ...
    """
    from . import __version__

    print(f"kpnops {__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"Triton: {_triton()}")
    for line in _devices():
        print(line)
    target = torch.device(device) if device is not None else _default_device()
    stride = pair("stride", stride)
    check_scale_factor(scale_factor, stride)
    kernel, dilation = pair("kernel_size", kernel_size), pair("dilation", dilation)
    window = Window(kernel, stride, dilation, scale=int(scale_factor))
    for shape in shapes:
        if len(shape) != 4 or min(shape) < 1:
            raise ValueError(
                f"shapes: expected (B, C, H, W) of positive numbers, got {tuple(shape)}"
            )
        taps = "x".join(str(size) for size in window.kernel_size)
        route_name = _route(shape, window, dtype, target)
        print(f"{tuple(shape)}, {taps} taps, {dtype} on {target}: {route_name}")


def _triton() -> str:
    problem = route.triton_problem()
    if problem is not None:
        return f"not used: {problem}"
    import triton  # pyright: ignore[reportMissingImports]

    mode = ", interpreter (TRITON_INTERPRET=1)" if route.interpreted() else ""
    return f"{triton.__version__}{mode}"


def _devices() -> list[str]:
    lines = [
        f"cpu: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        lines.append(f"cuda:{index}: {properties.name}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        lines.append("mps: available")
    return lines


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _route(shape: Shape, window: Window, dtype: torch.dtype, device: torch.device) -> str:
    reason = None
    if device.type == "cpu" and not route.interpreted():
        return "PyTorch operations (the CPU path)"
    if device.type != "cpu":
        reason = route.obstacle(device.type, device.index or 0)
    if reason is not None:
        return f"PyTorch operations, because {reason}"
    from ._decoupled_filter.call import Call
    from ._decoupled_filter.launch_band import architecture, holds_tiles, is_banded
    from ._decoupled_filter.triton_backend import is_fast

    B, C, H, W = shape
    Ho, Wo = (
        -(-size * window.scale // step) for size, step in zip((H, W), window.stride, strict=True)
    )
    image = torch.empty(shape, dtype=dtype, device="meta")
    spatial = torch.empty((B, window.taps, Ho, Wo), dtype=dtype, device="meta")
    output = torch.empty((B, C, Ho, Wo), dtype=dtype, device="meta")
    if is_banded(Call(image, spatial, None, window, "mul")) and holds_tiles(architecture(device)):
        return "Triton, banded kernels"
    fast = is_fast(window, [output, image, spatial])
    return f"Triton, {'fast' if fast else 'general'} kernels"
