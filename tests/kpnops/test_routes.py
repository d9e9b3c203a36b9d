"""Which implementation runs a call: fallbacks, the device guard, and both kernel routes
compared."""

import contextlib
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

import kpnops
from kpnops._decoupled_filter import cpu, route
from tests.helpers import Case, compare, expected_results, run_operator


@pytest.fixture
def fresh_route():
    """Forget what the route has found out about this machine, before and after."""
    cached = (route.obstacle, route.triton_problem, route._warn_once, route._load)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def on(device: str):
    return SimpleNamespace(device=torch.device(device))


@pytest.mark.usefixtures("fresh_route")
def test_a_device_without_kernels_takes_pytorch_operations_and_warns_once():
    with pytest.warns(UserWarning, match="no kernels for devices of type 'mps'"):
        assert route.backend(on("mps")) is cpu
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert route.backend(on("mps")) is cpu


@pytest.mark.usefixtures("fresh_route")
def test_a_gpu_without_triton_takes_pytorch_operations(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.warns(UserWarning, match="Triton can not be imported"):
        assert route.backend(on("cuda:0")) is cpu


@pytest.mark.usefixtures("fresh_route")
def test_an_old_triton_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.1.0"))
    assert route.obstacle("cuda", 0) == "Triton 3.1.0 is older than 3.6"


@pytest.mark.usefixtures("fresh_route")
def test_an_old_gpu_is_named(monkeypatch):
    monkeypatch.setattr(route, "triton_problem", lambda: None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    assert route.obstacle("cuda", 0) == "compute capability 6.1 is older than 8.0"


def test_works_where_triton_can_not_be_imported():
    """macOS and Windows: import, forward, backward and show_config without Triton."""
    program = """
import sys
sys.modules["triton"] = None
import torch, kpnops
image = torch.rand(1, 2, 5, 6, requires_grad=True)
kpnops.decoupled_filter(image, torch.rand(1, 9, 5, 6)).sum().backward()
assert image.grad is not None
kpnops.show_config()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Triton can not be imported" in result.stdout


@pytest.mark.parametrize(
    ("options", "shape", "expected"),
    [
        ({}, (1, 3, 64, 64), "fast"),
        ({"dtype": torch.bfloat16}, (1, 3, 64, 64), "fast"),
        ({"dtype": torch.bfloat16}, (1, 16, 64, 64), "banded"),
        ({"dtype": torch.bfloat16, "stride": 2}, (1, 16, 64, 64), "general"),
        ({"kernel_size": 9}, (1, 16, 64, 64), "general"),
    ],
)
def test_show_config_names_the_route(options, shape, expected, monkeypatch, capsys):
    pytest.importorskip("triton", reason="decides between kernels")
    monkeypatch.setattr(route, "obstacle", lambda *_: None)
    monkeypatch.setattr("kpnops._decoupled_filter.launch_band.architecture", lambda _: "sm_90")
    kpnops.show_config([shape], device="cuda", **options)
    assert f"on cuda: Triton, {expected} kernels" in capsys.readouterr().out


def test_importing_kpnops_does_not_define_kernels():
    program = "import sys, kpnops; print([m for m in sys.modules if 'kernels' in m])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "_decoupled_filter.kernels" not in result.stdout, result.stdout


def test_launches_run_under_a_guard_of_the_tensors_device(monkeypatch):
    """A tensor on cuda:1 launches with cuda:1 current, whichever was before."""
    backend = pytest.importorskip("kpnops._decoupled_filter.triton_backend")
    events = []

    @contextlib.contextmanager
    def guard(device):
        events.append(f"enter {device}")
        yield
        events.append("leave")

    class Kernel:
        def __getitem__(self, grid):
            return lambda **arguments: events.append(f"launch {grid}")

    monkeypatch.setattr(torch.cuda, "device", guard)
    launch = backend.Launch(Kernel(), 7, {}, {}, 4, 255)
    plan = backend.Plan([launch], [lambda: events.append("finish")])
    backend.run(plan, torch.device("cuda:1"))
    assert events == ["enter cuda:1", "launch (7,)", "finish", "leave"]


BOTH_ROUTES = [
    Case(kernel_size=(3, 3)),
    Case(kernel_size=(7, 6), channels=5, size=(3, 5)),  # the gain's gradient apart
    Case(kernel_size=(7, 6), channels=5, size=(1, 3), padding_mode="replicate"),  # and all three
    Case(kernel_size=(2, 5), channels=6, groups=2, channel_filter="image", combine="add"),
    Case(kernel_size=(4, 3), channels=6, padding_mode="reflect", combine="add"),
    Case(kernel_size=(5, 2), channels=5, padding_mode="circular", channel_filter="none"),
    Case(kernel_size=(3, 3), batch=2, channels=6, padding_mode="replicate", channel_batch=1),
]


@pytest.mark.parametrize("case", BOTH_ROUTES, ids=str)
@pytest.mark.parametrize(
    "where",
    [
        pytest.param("cpu", marks=pytest.mark.interpreted),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
def test_fast_and_general_kernels_agree(monkeypatch, where, case):
    """Both routes against the oracle on the same call, each within its budget."""
    from kpnops._decoupled_filter import triton_backend

    operands, cotangent = case.operands(where), case.cotangent(where)
    expected = expected_results(case, operands, cotangent)
    used = []
    is_fast = triton_backend.is_fast
    for fast in (True, False):

        def choose(window, tensors, fast=fast):
            used.append(fast)
            return fast and is_fast(window, tensors)

        monkeypatch.setattr(triton_backend, "is_fast", choose)
        actual = run_operator(kpnops.decoupled_filter, case, operands, cotangent)
        for name, value in expected.items():
            compare(actual[name], value, name)
    assert used == [True, True, False, False]
