"""The network as an ONNX file, for programs without PyTorch."""

import contextlib
import io
import logging
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dkpn.hdr_io import write_atomically
from dkpn.model import DKPN

OPSET = 18


class _Result(nn.Module):
    """From a photo straight to the HDR image, with the filter as PyTorch's own operations."""

    def __init__(self, model: DKPN) -> None:
        super().__init__()
        self.network = DKPN(model.config, op="naive")
        self.network.load_state_dict(model.state_dict())

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).result


def export_onnx(model: DKPN, path: str | os.PathLike[str], size: tuple[int, int]) -> None:
    """Write the network for photos of one size, in float32, in operators that any runtime has.

    The file's input is ``image``, (1, 3, H, W) float32, sRGB-encoded in [0, 1]; its output
    ``result``, (1, 3, H, W) float32, linear Rec.709, 1.0 = the photo's clip level.

    Args:
        model: the network, on any device.
        path: file to write, ``.onnx``; its folder exists.
        size: height and width of the photos, pixels.

    Raises:
        ValueError: another suffix, or a size without pixels.
        ModuleNotFoundError: onnx and onnxscript are not installed.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"{path}: expected a name that ends in .onnx")
    if min(size) < 1:
        raise ValueError(f"size: expected at least 1 x 1 pixels, got {size[0]} x {size[1]}")
    try:
        import onnx
        import onnxscript  # noqa: F401  # what torch.onnx.export needs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error.name} is needed to write ONNX files: pip install "kpnops[onnx]"',
            name=error.name,
        ) from error
    example = torch.zeros(1, 3, *size)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet():
        # The exporter warns of its own workings, which say nothing about the file.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Result(model).cpu().eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["result"],
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    file = program.model_proto
    onnx.checker.check_model(file)
    write_atomically(path, lambda temporary: temporary.write_bytes(file.SerializeToString()))


@contextlib.contextmanager
def _quiet():
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
