import sys

import numpy as np
import pytest
import torch

from dkpn import DKPN, DKPNConfig
from dkpn.export import export_onnx

TINY = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1, 2), encoder_blocks=(1, 1), decoder_blocks=(1,)
)


def shaken() -> DKPN:
    torch.manual_seed(0)
    model = DKPN(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def test_onnxruntime_gives_the_same_numbers(tmp_path):
    pytest.importorskip("onnx", reason="writes the file")
    pytest.importorskip("onnxscript", reason="writes the file")
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the file")
    model = shaken()
    export_onnx(model, tmp_path / "dkpn.onnx", (21, 34))
    image = torch.rand(1, 3, 21, 34, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(tmp_path / "dkpn.onnx"))
    (actual,) = session.run(["result"], {"image": image.numpy()})
    with torch.inference_mode():
        expected = model(image).result.numpy()
    # The same sums of float32, in another order.
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["dkpn.onnx"]


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"dkpn\.pt: expected a name that ends in \.onnx"):
        export_onnx(shaken(), tmp_path / "dkpn.pt", (8, 8))
    with pytest.raises(ValueError, match="size: expected at least 1 x 1 pixels, got 0 x 8"):
        export_onnx(shaken(), tmp_path / "dkpn.onnx", (0, 8))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "kpnops\[onnx\]"'):
        export_onnx(shaken(), tmp_path / "dkpn.onnx", (8, 8))
