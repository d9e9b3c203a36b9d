"""Providers: every one runs and is right at a tiny size; skips say why; memory is foreseen."""

from dataclasses import replace

import pytest
import torch

from bench import memory, providers
from bench.cases import (
    CHANNEL_FILTERS,
    COMPARED_PASSES,
    FORWARD,
    FORWARD_BACKWARD,
    SOFTMAX,
    Case,
    make_tensors,
    minimal_bytes,
)
from bench.oracle import check, oracle_tiles
from bench.providers import PROVIDERS, skip_reason
from bench.timing import peak_bytes

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
MUCH = 2**60
BY_NAME = {provider.name: provider for provider in PROVIDERS}
CPU_OPERATIONS = ["kpnops", "eager_unfold", "eager_slices"]
COMPILED = ["compiled_unfold", "compiled_slices"]


def run_and_check(name, case, pass_name):
    provider = BY_NAME[name]
    tensors = make_tensors(case, CPU)
    (call,) = provider.make_calls(case, pass_name, [tensors])
    tiles = oracle_tiles(case, tensors, pass_name)
    return check(case, call(), tiles, provider.working_dtype(case))


@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
@pytest.mark.parametrize("channel_filter", CHANNEL_FILTERS)
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "bfloat16")], ids="+".join)
@pytest.mark.parametrize("name", CPU_OPERATIONS)
def test_cpu_operation_agrees_with_the_oracle(name, dtypes, channel_filter, pass_name):
    case = Case(2, 5, 12, 9, 5, channel_filter, *dtypes)
    assert run_and_check(name, case, pass_name) <= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the code generator's own imports deprecate
@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_operation_agrees_with_the_oracle(name, pass_name):
    torch._dynamo.reset()
    assert run_and_check(name, Case(1, 3, 12, 9, 3), pass_name) <= 1


@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
@pytest.mark.parametrize("name", ["depthwise_conv", "device_copy"])
def test_yardstick_runs(name, pass_name):
    case = Case(2, 5, 12, 9, 3)
    sets = [make_tensors(case, CPU) for _ in range(3)]
    for call in BY_NAME[name].make_calls(case, pass_name, sets):
        assert all(output.isfinite().all() for output in call())


@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
def test_copy_moves_as_many_bytes_as_the_pass_must(pass_name):
    case = Case(2, 5, 12, 9, 3)
    sets = [make_tensors(case, CPU) for _ in range(4)]
    calls = BY_NAME["device_copy"].make_calls(case, pass_name, sets)
    (target,) = calls[0]()
    moved = 2 * target.numel() * target.element_size()
    assert moved == minimal_bytes(case, pass_name)
    held = sum(tensor.numel() * tensor.element_size() for one in sets for tensor in one)
    assert len(calls) * moved >= held


@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
@pytest.mark.parametrize("channel_filter", CHANNEL_FILTERS)
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("name", CPU_OPERATIONS)
def test_foreseen_memory_covers_what_is_measured(
    name, kernel_size, channel_filter, pass_name, monkeypatch
):
    # At this size kpnops needs little of its workspace, which is a bound.
    monkeypatch.setattr(memory, "KPNOPS_CPU_WORKSPACE", 2**20)
    case = Case(1, 6, 48, 64, kernel_size, channel_filter)
    provider = BY_NAME[name]
    (call,) = provider.make_calls(case, pass_name, [make_tensors(case, CPU)])
    call()
    measured = peak_bytes(call, CPU)
    foreseen = provider.temporary_bytes(case, pass_name, CPU)
    assert measured <= foreseen
    if name != "kpnops":
        # More than double would skip what fits well.
        assert foreseen <= 2 * measured


def test_unfold_is_foreseen_to_store_three_unfolded_tensors():
    case = Case(1, 3, 512, 512, 5)
    columns = 3 * 25 * 512 * 512 * 4
    foreseen = BY_NAME["eager_unfold"].temporary_bytes(case, FORWARD, CPU)
    assert foreseen == 3 * columns + 3 * 512 * 512 * 4


@pytest.mark.parametrize("name", [*CPU_OPERATIONS, "device_copy"])
def test_exactly_half_of_the_free_memory_may_be_taken(name):
    case = Case(1, 3, 512, 512, 5)
    provider = BY_NAME[name]
    peak = provider.peak_bytes(case, FORWARD_BACKWARD, CPU)
    assert skip_reason(provider, case, FORWARD_BACKWARD, CPU, 2 * peak) is None
    reason = skip_reason(provider, case, FORWARD_BACKWARD, CPU, 2 * peak - 1)
    assert reason is not None
    assert "over half of" in reason


def test_what_needs_a_gpu_says_so_on_a_cpu():
    case = Case(1, 3, 16, 16, 3, "image")
    reasons = {
        provider.name: skip_reason(provider, case, FORWARD, CPU, MUCH) for provider in PROVIDERS
    }
    assert reasons["ddf_cuda"] == "runs on NVIDIA GPUs only"
    assert reasons["depthwise_conv"] == "needs a GPU with cuDNN"
    assert reasons["kpnops"] is None


def test_compiled_slices_of_many_taps_are_refused():
    case = Case(1, 3, 64, 64, 21)
    refused = skip_reason(BY_NAME["compiled_slices"], case, FORWARD, CUDA, MUCH)
    assert refused == "generating code for 441 unrolled taps takes too long"


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(providers.shutil, "which", lambda name: None)
    refused = skip_reason(BY_NAME["compiled_unfold"], Case(1, 3, 8, 8, 3), FORWARD, CPU, MUCH)
    assert refused == "torch.compile needs a C++ compiler on the CPU and none is on the path"


IMAGE = Case(1, 3, 1080, 1920, 3, "image")


@pytest.mark.parametrize(
    ("case", "pass_name", "expected"),
    [
        (IMAGE, FORWARD_BACKWARD, None),
        (replace(IMAGE, channel_filter="pixel"), FORWARD, "takes channel filters per image only"),
        (replace(IMAGE, filter_dtype="bfloat16"), FORWARD, "takes float32 only"),
        (replace(IMAGE, normalize=SOFTMAX), FORWARD, "has no softmax"),
        (replace(IMAGE, layout="channels_last"), FORWARD, "refuses channels_last tensors"),
        (replace(IMAGE, kernel_size=13), FORWARD, None),
        (replace(IMAGE, kernel_size=15), FORWARD, "overruns shared memory above kernel size 13"),
        (
            replace(IMAGE, height=2160, width=3840),
            FORWARD,
            "ends the process on images of more than 2,097,120 pixels",
        ),
        (replace(IMAGE, batch=3, kernel_size=5), FORWARD, None),
        (
            replace(IMAGE, batch=3, kernel_size=5),
            FORWARD_BACKWARD,
            "its spatial gradient overflows 32-bit indices at this size",
        ),
    ],
)
def test_ddf_is_kept_from_what_it_cannot_do(case, pass_name, expected, monkeypatch):
    found = object()
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: found)
    assert skip_reason(BY_NAME["ddf_cuda"], case, pass_name, CUDA, MUCH) == expected


def test_ddf_that_is_not_installed_says_so():
    assert providers.importlib.util.find_spec("ddf") is None
    refused = skip_reason(BY_NAME["ddf_cuda"], IMAGE, FORWARD, CUDA, MUCH)
    assert refused == "the package ddf is not installed"


def test_ddf_is_called_as_its_own_users_call_it(monkeypatch):
    calls = []

    class Module:
        @staticmethod
        def ddf(features, channel_filter, spatial_filter, *options):
            calls.append((features.shape, channel_filter.shape, spatial_filter.shape, options))
            return features

    monkeypatch.setattr("bench.operations.importlib.import_module", lambda name: Module)
    case = Case(2, 5, 8, 7, 3, "image")
    BY_NAME["ddf_cuda"].make_calls(case, FORWARD, [make_tensors(case, CPU)])[0]()
    assert calls == [((2, 5, 8, 7), (2, 5, 3, 3), (2, 9, 8, 7), (3, 1, 1, "mul"))]
