"""Memory against the size of the filter, with and without the stored logits: the picture of
``docs/predict_filter.md``.

``python -m bench.head_memory docs/predict_filter_memory.png`` measures training steps on the CPU
and draws them with the formulas: ``8 K² H W`` bytes for the logits and their gradient, or one
number for each pixel plus the workspace where they are not stored.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import kpnops
from bench.timing import peak_bytes

SIZE = (512, 512)
FEATURES = 64
KERNELS = (3, 5, 7, 11, 15, 21)
WORKSPACE = 32 * 2**20
ULTRA_HD = 3840 * 2160


def step_bytes(kernel: int, *, fused: bool) -> int:
    """Peak bytes of a training step of a head and its filter on a CPU, beyond the arguments and
    their gradients."""
    features = torch.rand(1, FEATURES, *SIZE)
    weight, bias = torch.rand(kernel**2, FEATURES) / FEATURES, torch.zeros(kernel**2)
    image = torch.rand(1, 3, *SIZE)
    leaves = [tensor.requires_grad_() for tensor in (features, weight, bias, image)]

    def step() -> object:
        if fused:
            result = kpnops.predict_filter(*leaves, kernel_size=kernel, normalize="softmax")
        else:
            logits = F.conv2d(features, weight[..., None, None], bias)
            result = kpnops.decoupled_filter(image, logits, normalize="softmax")
        return torch.autograd.grad(result.sum(), leaves)

    return peak_bytes(step, torch.device("cpu")) - sum(leaf.nbytes for leaf in leaves)


def stored_bytes(kernel: int, pixels: int) -> int:
    """Logits and their gradient, in float32."""
    return 8 * kernel**2 * pixels


def fused_bytes(pixels: int) -> int:
    """One number for each pixel, in float32, and the workspace."""
    return 4 * pixels + WORKSPACE


def draw(path: Path, measured: dict[bool, list[int]]) -> None:
    """Save the picture; ``measured`` has the peaks by whether the head is fused."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    sides = [(SIZE[0] * SIZE[1], f"{SIZE[0]} x {SIZE[1]}, CPU"), (ULTRA_HD, "3840 x 2160, formula")]
    for axis, (pixels, title) in zip(axes, sides, strict=True):
        stored = [stored_bytes(kernel, pixels) / 2**20 for kernel in KERNELS]
        fused = [fused_bytes(pixels) / 2**20] * len(KERNELS)
        axis.plot(KERNELS, stored, "C1-", label="stored, 8 K² H W")
        axis.plot(KERNELS, fused, "C0-", label="predict_filter, 4 H W + 32 MiB")
        axis.set(title=title, xlabel="K", ylabel="MiB of a training step", yscale="log")
        axis.set_xticks(KERNELS)
        axis.grid(alpha=0.3)
    for fused, color in ((False, "C1"), (True, "C0")):
        mebibytes = [size / 2**20 for size in measured[fused]]
        axes[0].plot(KERNELS, mebibytes, f"{color}o", label="measured")
    for axis in axes:
        axis.legend()
    figure.savefig(path, dpi=110)


def main(path: str) -> None:
    """Measure, print and draw."""
    measured = {fused: [step_bytes(K, fused=fused) for K in KERNELS] for fused in (False, True)}
    for index, kernel in enumerate(KERNELS):
        stored, fused = (measured[which][index] / 2**20 for which in (False, True))
        print(f"K={kernel}: stored {stored:.0f} MiB, predict_filter {fused:.0f} MiB")
    draw(Path(path), measured)


if __name__ == "__main__":
    main(sys.argv[1])
