"""The fused head's benchmark: cases, tensors, providers, memory that is foreseen, the oracle."""

from dataclasses import replace

import pytest
import torch

import bench.head_providers
from bench.cases import (
    BACKWARD,
    COMPARED_PASSES,
    FORWARD,
    FORWARD_BACKWARD,
    PASSES,
    minimal_bytes,
)
from bench.head_cases import (
    BF16,
    HEAD_IMAGE_SIZES,
    HEAD_KERNEL_SIZES,
    IEEE,
    MODES,
    TF32,
    HeadCase,
    HeadTensors,
    all_head_cases,
    cpu_head_cases,
    make_head_tensors,
)
from bench.head_operations import PreciseCall, matrix_precision, stored_operation
from bench.head_oracle import check_head, head_oracle_tiles
from bench.head_providers import HEAD_PROVIDERS, alternative_for
from bench.measure import measure_group
from bench.oracle import WrongResultError
from bench.providers import skip_reason
from bench.results import FAILED, MEASURED, SKIPPED
from bench.timing import peak_bytes

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
MUCH = 2**60
BY_NAME = {provider.name: provider for provider in HEAD_PROVIDERS}
CASE = HeadCase(2, 3, 20, 24, 5, 16)
PLAIN = [provider for provider in HEAD_PROVIDERS if "compiled" not in provider.name]
OURS = ["predict_filter", "conv_kpnops"]


def with_mode(case, mode):
    dtype, precision = MODES[mode]
    return replace(case, dtype=dtype, precision=precision)


def test_the_cases_are_those_asked_for():
    cases = all_head_cases()
    assert len(set(cases)) == len(cases) == 2 * 3 * 5 * 3
    assert {case.kernel_size for case in cases} == set(HEAD_KERNEL_SIZES) == {3, 5, 7, 11, 21}
    assert {(case.height, case.width) for case in cases} == set(HEAD_IMAGE_SIZES)
    assert {case.channels for case in cases} == {3, 64}
    assert {case.features for case in cases} == {64}
    assert {case.mode for case in cases} == {TF32, BF16, IEEE}
    assert [case.name for case in cpu_head_cases()] == [
        "1x3x256x256-K5-head-F64-ieee",
        "1x3x256x256-K11-head-F64-ieee",
        "1x16x128x128-K5-head-F64-ieee",
        "1x16x128x128-K11-head-F64-ieee",
    ]


@pytest.mark.parametrize(
    ("dtype", "precision"), [("bfloat16", TF32), ("float32", "fp8"), ("float33", IEEE)]
)
def test_unknown_precisions_are_refused(dtype, precision):
    with pytest.raises(ValueError, match=r"precision: expected one of|'float33' is not"):
        HeadCase(1, 3, 8, 8, 3, 16, dtype, precision)


# By hand: 16 features and 3 channels of 960 pixels; 25 rows of 16 weights and a bias.
@pytest.mark.parametrize(("mode", "size"), [(TF32, 4), (BF16, 2)])
def test_bytes_are_those_of_the_tensors(mode, size):
    case = with_mode(CASE, mode)
    tensors = make_head_tensors(case, CPU)
    arguments = sum(tensor.nbytes for tensor in tensors.arguments)
    assert arguments == case.argument_bytes == (960 * 19 + 25 * 17) * size
    assert tensors.cotangent.nbytes == case.result_bytes == 960 * 3 * size
    assert minimal_bytes(case, FORWARD) == arguments + case.result_bytes
    assert minimal_bytes(case, FORWARD_BACKWARD) == 3 * arguments + 2 * case.result_bytes
    assert case.logits_bytes == 960 * 25 * size


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("mode", MODES)
def test_every_provider_of_a_cpu_is_right(mode, pass_name):
    measured = measure_group(PLAIN, with_mode(CASE, mode), pass_name, CPU, seconds=0)
    for name, measurement in measured.items():
        assert measurement.row.status == MEASURED, measurement.row
        assert (measurement.row.error is None) == (name == "device_copy")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the code generator's own imports deprecate
@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_compiled_providers_are_right(kernel_size, pass_name):
    case = replace(CASE, kernel_size=kernel_size)
    provider = BY_NAME[alternative_for(case)]
    (measurement,) = measure_group([provider], case, pass_name, CPU, seconds=0).values()
    assert measurement.row.status == MEASURED, measurement.row


def test_slices_are_compiled_for_few_taps_only():
    assert alternative_for(CASE) == "compiled_conv_slices"
    large = replace(CASE, kernel_size=7)
    assert alternative_for(large) == "compiled_conv_unfold"
    refused = skip_reason(BY_NAME["compiled_conv_slices"], large, FORWARD, CUDA, MUCH)
    assert refused == "generating code for 49 unrolled taps takes too long"


def tiles_and_outputs(case, pass_name):
    tensors = make_head_tensors(case, CPU)
    (call,) = BY_NAME["conv_kpnops"].make_calls(case, pass_name, [tensors])
    return list(head_oracle_tiles(case, tensors, pass_name)), list(call())


def test_tiles_do_not_change_what_is_right(monkeypatch):
    whole, _ = tiles_and_outputs(CASE, FORWARD_BACKWARD)
    monkeypatch.setattr("bench.head_oracle.tile_side", lambda case, device: 7)
    parts, _ = tiles_and_outputs(CASE, FORWARD_BACKWARD)
    assert len(parts) > 4 * len(whole)
    for name in {tile.tensor for tile in whole}:
        of_whole = [tile for tile in whole if tile.tensor == name]
        target = torch.zeros_like(_assembled(of_whole, name))
        for tile in parts:
            if tile.tensor == name:
                target[tile.index] = tile.expected
        torch.testing.assert_close(target, _assembled(of_whole, name))


def _assembled(tiles, name):
    if name in ("grad weight", "grad bias"):
        return tiles[0].expected
    return torch.cat([tile.expected for tile in tiles])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", range(5))
def test_one_wrong_element_is_found(place, mode):
    """A pixel, a weight or a bias that is off by its own size, whatever the precision."""
    tiles, outputs = tiles_and_outputs(with_mode(CASE, mode), FORWARD_BACKWARD)
    right = outputs[place]
    wrong = right.clone()
    largest = wrong.flatten().abs().argmax()
    wrong.view(-1)[largest] = 0
    outputs[place] = wrong
    with pytest.raises(WrongResultError, match="times its budget"):
        check_head(with_mode(CASE, mode), tuple(outputs), tiles, FORWARD_BACKWARD)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda out: out.half(), "expected shape and dtype"),
        (lambda out: out[:1], "expected shape and dtype"),
        (lambda out: out.index_fill(0, torch.tensor(0), float("nan")), "not all values are finite"),
        (lambda out: 1.01 * out, "the error's norm"),
    ],
)
def test_wrong_results_are_named(harm, message):
    tiles, (result,) = tiles_and_outputs(CASE, FORWARD)
    with pytest.raises(WrongResultError, match=f"result: .*{message}"):
        check_head(CASE, (harm(result),), tiles, FORWARD)


def test_products_in_tf32_are_no_result_of_ieee():
    tensors = make_head_tensors(CASE, CPU)
    tiles = list(head_oracle_tiles(CASE, tensors, FORWARD))
    cut = (
        (tensor.view(torch.int32) >> 13 << 13).view(torch.float32)
        for tensor in (tensors.features, tensors.weight)
    )
    coarse = HeadTensors(*cut, *tensors[2:])
    (call,) = BY_NAME["conv_kpnops"].make_calls(CASE, FORWARD, [coarse])
    with pytest.raises(WrongResultError):
        check_head(CASE, call(), tiles, FORWARD)
    assert check_head(with_mode(CASE, TF32), call(), _tf32_tiles(tensors), FORWARD) <= 1


def _tf32_tiles(tensors):
    return list(head_oracle_tiles(with_mode(CASE, TF32), tensors, FORWARD))


def test_every_wrong_provider_fails_alone():
    def without_bias(case, pass_name, sets):
        def wrong(features, weight, bias, input):
            return right(features, weight, torch.zeros_like(bias) + 0 * bias, input)

        right = stored_operation(case)
        return [PreciseCall(wrong, pass_name, tensors, IEEE) for tensors in sets]

    wrong = replace(BY_NAME["conv_kpnops"], name="wrong", make_calls=without_bias)
    measured = measure_group([PLAIN[0], wrong], CASE, FORWARD, CPU, seconds=0)
    assert measured["predict_filter"].row.status == MEASURED
    assert measured["wrong"].row.status == FAILED
    assert "result: the error's" in measured["wrong"].row.reason


@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("name", OURS)
def test_foreseen_memory_covers_what_is_measured(name, kernel_size, pass_name, monkeypatch):
    # At this size the operators need little of their workspace, which is a bound.
    monkeypatch.setattr(bench.head_providers, "WORKSPACE", 8 * 2**20)
    case = HeadCase(1, 6, 96, 128, kernel_size, 16)
    provider = BY_NAME[name]
    (call,) = provider.make_calls(case, pass_name, [make_head_tensors(case, CPU)])
    call()
    assert peak_bytes(call, CPU) <= provider.temporary_bytes(case, pass_name, CPU)


def test_stored_logits_that_do_not_fit_are_skipped_and_the_fused_head_is_not():
    """K = 21 at 4K: 14.6 GB of logits, as many of their gradient."""
    case = HeadCase(1, 3, 2160, 3840, 21)
    free = 40 * 2**30
    assert skip_reason(BY_NAME["predict_filter"], case, FORWARD_BACKWARD, CUDA, free) is None
    reason = skip_reason(BY_NAME["conv_kpnops"], case, FORWARD_BACKWARD, CUDA, free)
    assert reason is not None
    assert "over half of" in reason
    assert BY_NAME["conv_kpnops"].temporary_bytes(case, BACKWARD, CUDA) > 2 * 14.6e9


@pytest.mark.parametrize("precision", [TF32, IEEE])
def test_precision_holds_within_and_is_put_back(precision):
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]

    def fail():
        assert [setting.allow_tf32 for setting in settings] == [precision == TF32] * 2
        raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"), matrix_precision(precision):
        fail()
    assert [setting.allow_tf32 for setting in settings] == before


@pytest.mark.parametrize("pass_name", PASSES)
def test_unfused_routes_run_at_the_precision_of_the_case(pass_name):
    seen = []

    def operation(features, weight, bias, input):
        seen.append(torch.backends.cudnn.allow_tf32)
        if features.requires_grad:
            features.register_hook(lambda grad: seen.append(torch.backends.cudnn.allow_tf32))
        return stored_operation(CASE)(features, weight, bias, input)

    for precision in (TF32, IEEE):
        seen.clear()
        call = PreciseCall(operation, pass_name, make_head_tensors(CASE, CPU), precision)
        call()
        assert seen == [precision == TF32] * (1 if pass_name == FORWARD else 2)


def test_graphs_are_skipped_on_a_cpu():
    measured = measure_group(PLAIN[:1], CASE, FORWARD, CPU, 0.01, in_graph=True)
    assert measured["predict_filter"].row.status == SKIPPED


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what the code generator's own imports deprecate
@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel_size", [5, 11])
def test_group_on_a_gpu(kernel_size, mode, pass_name):
    case = with_mode(HeadCase(1, 3, 64, 96, kernel_size), mode)
    providers = [*PLAIN, BY_NAME[alternative_for(case)]]
    measured = measure_group(providers, case, pass_name, CUDA, seconds=0.05)
    for measurement in measured.values():
        assert measurement.row.status == MEASURED, measurement.row
        assert measurement.row.milliseconds is not None
