"""Training steps: cases, photos, the three routes, memory that is foreseen, wrong gradients."""

import builtins

import pytest
import torch

from bench.any_case import case_from_json, case_from_request, case_to_json, case_to_request
from bench.cases import Case
from bench.head_cases import HeadCase
from bench.measure import measure_group
from bench.oracle import WrongResultError
from bench.providers import Provider, skip_reason
from bench.results import MEASURED
from bench.step_cases import (
    STEP,
    StepCase,
    cpu_step_cases,
    gpu_step_cases,
    make_step_tensors,
)
from bench.step_operations import (
    STEP_FUSED,
    STEP_PROVIDERS,
    make_model,
    step_checker,
)
from bench.timing import peak_bytes
from tests.bench.rows import measured

CPU = torch.device("cpu")
CASE = StepCase(1, 24, 32, 5)


def test_the_cases_are_those_asked_for():
    for cases in (cpu_step_cases(), gpu_step_cases()):
        assert {case.kernel_size for case in cases} == {5, 9}
    assert {case.height for case in gpu_step_cases()} == {256, 512}
    assert gpu_step_cases()[0].name == "8x3x256x256-K5-dkpn-bfloat16"
    with pytest.raises(ValueError, match="dtype: expected float32 or bfloat16, got 'float16'"):
        StepCase(1, 8, 8, 5, "float16")


def test_photos_are_8_bit_and_partly_clipped():
    photo, truth = make_step_tensors(StepCase(2, 64, 64, 5), CPU)
    assert torch.equal((photo * 255).round() / 255, photo)
    clipped = (photo == 1).float().mean()
    assert 0.02 < clipped < 0.5
    assert truth.max() > 1
    assert torch.equal(photo == 1, (truth.clamp(0, 1) ** (1 / 2.2) * 255).round() == 255)


def test_every_route_makes_the_same_step():
    groups = measure_group(STEP_PROVIDERS, CASE, STEP, CPU, seconds=0.001)
    assert list(groups) == ["dkpn_kpnops", "dkpn_fused_head", "dkpn_naive"]
    for measurement in groups.values():
        row = measurement.row
        assert row.status == MEASURED, row
        assert row.milliseconds is not None
        assert row.error is not None
        assert row.minimal_bytes is row.gigabytes_per_second is row.memory_beyond_results is None


def test_a_step_changes_the_weights():
    (call,) = STEP_PROVIDERS[0].make_calls(CASE, STEP, [make_step_tensors(CASE, CPU)])
    losses = [call()[0].item() for _ in range(3)]
    assert losses[2] < losses[0]


def test_wrong_gradients_are_refused(monkeypatch):
    check = step_checker(CASE, make_step_tensors(CASE, CPU))
    loss = torch.tensor(1.0)
    assert check(STEP_PROVIDERS[0], (loss,)) <= 1
    with pytest.raises(WrongResultError, match="the loss is nan"):
        check(STEP_PROVIDERS[0], (loss * float("nan"),))

    def off(name, kernel_size, device):
        model = make_model(name, kernel_size, device)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + 1e-3)
        return model

    monkeypatch.setattr("bench.step_operations.make_model", off)
    with pytest.raises(WrongResultError, match="gradient: the error's norm is"):
        check(STEP_PROVIDERS[0], (loss,))


@pytest.mark.parametrize("provider", STEP_PROVIDERS, ids=lambda provider: provider.name)
@pytest.mark.parametrize("kernel_size", [5, 9])
def test_foreseen_memory_covers_what_is_measured(provider: Provider, kernel_size):
    case = StepCase(1, 64, 64, kernel_size)
    (call,) = provider.make_calls(case, STEP, [make_step_tensors(case, CPU)])
    call()
    # the gradients of two million weights and the workspace of an operator come on top
    allowed = provider.temporary_bytes(case, STEP, CPU) + 48 * 2**20
    assert peak_bytes(call, CPU) <= allowed


def test_a_machine_without_the_networks_packages_is_told(monkeypatch):
    def without(name, *arguments, **options):
        if name.startswith("dkpn"):
            raise ModuleNotFoundError("No module named 'einops'", name="einops")
        return imports(name, *arguments, **options)

    imports = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    reason = skip_reason(STEP_PROVIDERS[0], CASE, STEP, CPU, 2**60)
    assert reason == "the network needs the package einops, which is not installed"


HEAD = HeadCase(2, 3, 8, 9, 5, 16, "bfloat16")


@pytest.mark.parametrize("case", [CASE, HEAD, Case(2, 3, 8, 9, 5)], ids=lambda case: case.name)
def test_every_kind_of_case_is_told_and_read_back(case):
    assert case_from_request(case_to_request(case)) == case
    data = case_to_json(case)
    assert case_from_json(data, case.dtype, "row") == case
    assert data["shape"] == [case.batch, case.channels, case.height, case.width]


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        (HEAD, {"precision": "fp8"}, "precision: expected one of"),
        (HEAD, {"model": "dkpn"}, "expected the fields"),
        (HEAD, {"features": "64"}, r"row\.case\.features: expected int, got '64'"),
        (CASE, {"model": "unet"}, "model: expected 'dkpn'"),
        (CASE, {"form": "pixel"}, "expected the fields"),
    ],
)
def test_other_layouts_of_a_case_are_refused_and_named(case, change, message):
    with pytest.raises(ValueError, match=message):
        case_from_json(case_to_json(case) | change, case.dtype, "row")


def test_groups_of_different_kinds_differ():
    rows = [measured(STEP_FUSED, case=case, pass_name=STEP) for case in (CASE, HEAD)]
    assert len({row.group for row in rows}) == len({row.key for row in rows}) == 2
