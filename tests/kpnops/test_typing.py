"""Type information as a user's type checker sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyright", reason="pyright is not installed")

ROOT = Path(__file__).resolve().parents[2]

GOOD = """
from typing import assert_type

import torch
from torch import Tensor

import kpnops
from kpnops.compat import ddf
from kpnops.nn import DDFUpPack

x = torch.rand(1, 3, 8, 8)
taps = torch.rand(1, 9, 8, 8)
assert_type(kpnops.decoupled_filter(x, taps), Tensor)
assert_type(kpnops.decoupled_filter(x, None, torch.rand(1, 3, 6), kernel_size=(2, 3)), Tensor)
assert_type(
    kpnops.decoupled_filter(
        x,
        taps,
        x,
        kernel_size=3,
        stride=(1, 1),
        dilation=2,
        padding_mode="circular",
        combine="add",
        normalize="softmax",
        scale_factor=1,
    ),
    Tensor,
)
assert_type(kpnops.kernel_filter(x, taps, padding_mode="reflect", normalize="softmax"), Tensor)
assert_type(kpnops.reference.decoupled_filter(x, taps), Tensor)
assert_type(ddf(x, torch.rand(1, 3, 3, 3), taps, 3, 1, 1, "mul", "f"), Tensor)
layer = kpnops.nn.DecoupledFilter2d(3, padding_mode="replicate", normalize=None)
assert_type(layer.forward(x, taps), Tensor)
assert_type(kpnops.nn.DDFPack(3, stride=(2, 1), kernel_combine="add").forward(x), Tensor)
assert_type(DDFUpPack(3, joint_channels=2).forward(x, joint_x=None), Tensor)
assert_type(kpnops.nn.FilterNorm(1, 3, "spatial", running_std=True).forward(taps), Tensor)
kpnops.show_config([(1, 3, 8, 8)], dtype=torch.float32)
"""

# one wrong argument a line
BAD = """
import torch, kpnops; x = torch.rand(1, 9, 8, 8)
kpnops.decoupled_filter(x, x, combine="max")
kpnops.decoupled_filter(x, x, padding_mode="same")
kpnops.decoupled_filter(x, x, stride=2.0)
kpnops.kernel_filter(x, None)
kpnops.kernel_filter(x, x, normalize="sum")
kpnops.compat.ddf(x, x, x, 3, 1, 1, "max")
kpnops.nn.DecoupledFilter2d(3, combine="max")
kpnops.nn.FilterNorm(1, 3, "both")
"""


def pyright(*arguments, directory):
    """What pyright says, as a dictionary."""
    python = Path(sys.executable)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",  # where it looks for torch
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }
    command = [sys.executable, "-m", "pyright", "--outputjson", *arguments]
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    return json.loads(result.stdout)


def test_a_users_calls(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    found = pyright("--pythonpath", sys.executable, "-p", ".", directory=tmp_path)
    errors = [item for item in found["generalDiagnostics"] if item["severity"] == "error"]
    good = [item["message"] for item in errors if Path(item["file"]).name == "good.py"]
    assert not good
    lines = {item["range"]["start"]["line"] + 1 for item in errors}
    assert lines == set(range(3, 1 + len(BAD.splitlines())))


def test_every_public_name_is_typed(tmp_path):
    found = pyright("--verifytypes", "kpnops", "--ignoreexternal", directory=tmp_path)
    completeness = found["typeCompleteness"]
    untyped = [item["name"] for item in completeness["symbols"] if not item["isTypeKnown"]]
    assert not untyped
    assert completeness["completenessScore"] == 1
    assert completeness["pyTypedPath"].endswith("kpnops/py.typed")
