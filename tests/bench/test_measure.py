"""Groups: checked before timed, skips and failures listed, ratios right."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import bench.measure
import bench.memory
import bench.workloads
from bench.cases import (
    BACKWARD,
    CHANNELS_LAST,
    COMPARED_PASSES,
    FORWARD,
    FORWARD_BACKWARD,
    GPU_DTYPES,
    PASSES,
    SOFTMAX,
    Case,
)
from bench.measure import DeviceLostError, measure_group
from bench.operations import calls_of, slices_operation
from bench.providers import PROVIDERS, Provider
from bench.results import FAILED, GRAPH, MEASURED, MEBIBYTE, SKIPPED, YARDSTICK
from bench.timing import TURNS

CPU = torch.device("cpu")
CASE = Case(1, 3, 20, 24, 3)
PLAIN = [provider for provider in PROVIDERS if not provider.name.startswith("compiled")]


def transposed_operation(case):
    """Taps in the wrong order, as a mistake in a real implementation would have them."""
    right = slices_operation(case)
    K = case.kernel_size

    def wrong(input, spatial_filter, channel_filter):
        taps = spatial_filter.unflatten(1, (K, K)).transpose(1, 2).flatten(1, 2)
        return right(input, taps, channel_filter)

    return wrong


def wrong_provider():
    return Provider(
        "wrong",
        partial(calls_of, transposed_operation),
        lambda case, pass_name, device: 0,
        lambda case, pass_name, device: None,
    )


def statuses(measurements):
    return {name: measurement.row.status for name, measurement in measurements.items()}


@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
def test_group_on_a_cpu(pass_name):
    measurements = measure_group(PLAIN, CASE, pass_name, CPU, seconds=0.01)
    assert statuses(measurements) == {
        "kpnops": MEASURED,
        "softmax_kpnops": SKIPPED,
        "eager_unfold": MEASURED,
        "eager_slices": MEASURED,
        "ddf_cuda": SKIPPED,
        "depthwise_conv": SKIPPED,
        "device_copy": MEASURED,
    }
    for measurement in measurements.values():
        row = measurement.row
        if row.status == SKIPPED:
            assert row.reason
            assert row.milliseconds is None
            assert measurement.durations == []
            continue
        assert row.reason == ""
        assert row.rounds == len(measurement.durations) >= TURNS
        assert row.quartiles[0] <= row.milliseconds <= row.quartiles[1]
        assert row.gigabytes_per_second == row.minimal_bytes / row.milliseconds / 1e6
        assert row.first_call_milliseconds > 0
        assert (row.role == YARDSTICK) == (row.error is None)
        assert row.source
        assert row.commit
    kpnops = measurements["kpnops"].row
    copy = measurements["device_copy"].row
    assert copy.fraction_of_copy == 1
    assert kpnops.fraction_of_copy == copy.milliseconds / kpnops.milliseconds


@pytest.mark.parametrize("layout", ["contiguous", CHANNELS_LAST])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16")], ids="+".join)
def test_softmax_is_right_in_every_provider(dtypes, layout):
    case = Case(1, 3, 20, 24, 3, "pixel", *dtypes, layout, SOFTMAX)
    for pass_name in (BACKWARD, FORWARD_BACKWARD):
        measured = measure_group(PLAIN[:4], case, pass_name, CPU, seconds=0)
        assert set(statuses(measured).values()) == {MEASURED}


def test_backward_alone_needs_its_forward_each_time_and_does_not_time_it():
    measurements = measure_group([PLAIN[0], PLAIN[3]], CASE, BACKWARD, CPU, seconds=0.01)
    for measurement in measurements.values():
        assert measurement.row.status == MEASURED, measurement.row
        assert len(measurement.durations) >= TURNS


def test_progress_is_told_before_each_provider_and_before_timing():
    told = []
    measure_group(PLAIN[:3], CASE, FORWARD, CPU, seconds=0.01, progress=told.append)
    assert told == ["kpnops", "eager_unfold", ""]


def test_graphs_are_skipped_on_a_cpu():
    measurements = measure_group(PLAIN[:1], CASE, FORWARD, CPU, 0.01, in_graph=True)
    assert measurements["kpnops"].row.reason == "graphs need a GPU"


def test_broken_device_ends_the_group():
    def lost_operation(case):
        def lost(*arguments):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        return lost

    broken = replace(wrong_provider(), make_calls=partial(calls_of, lost_operation))
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        measure_group([broken], CASE, FORWARD, CPU, seconds=0.01)


def test_kpnops_saves_nothing_and_unfold_saves_columns_and_filters():
    measurements = measure_group(PLAIN[:3], CASE, FORWARD_BACKWARD, CPU, seconds=0)
    assert measurements["kpnops"].row.saved_mebibytes == 0
    columns = CASE.pixels * CASE.channels * CASE.taps * 4
    assert measurements["eager_unfold"].row.saved_mebibytes == 2 * columns / MEBIBYTE


def test_wrong_provider_fails_and_the_others_are_timed():
    providers = [PLAIN[0], wrong_provider(), PLAIN[3]]
    measurements = measure_group(providers, CASE, FORWARD, CPU, seconds=0.01)
    assert statuses(measurements) == {
        "kpnops": MEASURED,
        "wrong": FAILED,
        "eager_slices": MEASURED,
    }
    wrong = measurements["wrong"]
    assert "result: an error is" in wrong.row.reason
    assert wrong.row.milliseconds is None
    assert wrong.durations == []


def test_provider_that_breaks_fails_and_the_others_are_timed():
    def broken_operation(case):
        def broken(*arguments):
            raise RuntimeError("no such luck\nand much more")

        return broken

    broken = replace(wrong_provider(), make_calls=partial(calls_of, broken_operation))
    measurements = measure_group([broken, PLAIN[0]], CASE, FORWARD, CPU, seconds=0.01)
    assert statuses(measurements) == {"wrong": FAILED, "kpnops": MEASURED}
    assert measurements["wrong"].row.reason == "RuntimeError: no such luck"


def test_without_seconds_results_are_checked_and_nothing_is_timed():
    measurements = measure_group([PLAIN[0], wrong_provider()], CASE, FORWARD, CPU, seconds=0)
    assert measurements["kpnops"].row.error is not None
    assert measurements["kpnops"].row.milliseconds is None
    assert measurements["wrong"].row.status == FAILED


def test_without_memory_nothing_is_made(monkeypatch):
    monkeypatch.setattr(bench.measure, "free_memory", lambda device: 1000)
    monkeypatch.delattr(bench.measure, "workload_of")
    measurements = measure_group(PLAIN, CASE, FORWARD, CPU, seconds=1.0)
    assert set(statuses(measurements).values()) == {SKIPPED}
    assert "over half of" in measurements["kpnops"].row.reason


def test_oracle_that_does_not_fit_is_computed_for_each_provider(monkeypatch):
    made = []

    def counted(*arguments):
        made.append(arguments)
        return tiles(*arguments)

    tiles = bench.workloads.oracle_tiles
    monkeypatch.setattr(bench.workloads, "oracle_tiles", counted)
    monkeypatch.setattr(bench.memory, "KPNOPS_CPU_WORKSPACE", 0)
    providers = [PLAIN[0], PLAIN[3]]
    case = Case(1, 3, 64, 64, 3)
    measure_group(providers, case, FORWARD, CPU, seconds=0)
    assert len(made) == 1
    # Twice what a provider takes, and less than eight times the oracle's float64 values.
    free = 2 * max(provider.peak_bytes(case, FORWARD, CPU) for provider in providers)
    assert free < 8 * 2 * 8 * 3 * 64 * 64
    monkeypatch.setattr(bench.measure, "free_memory", lambda device: free)
    measurements = measure_group(providers, case, FORWARD, CPU, seconds=0)
    assert len(made) == 1 + 2
    assert all(measurement.row.error is not None for measurement in measurements.values())


def check_on_a_gpu(providers, case, pass_name):
    measurements = measure_group(providers, case, pass_name, torch.device("cuda"), seconds=0.05)
    for name, measurement in measurements.items():
        row = measurement.row
        optional = name in ("ddf_cuda", "softmax_kpnops") and row.reason
        assert row.status == (SKIPPED if optional else MEASURED), row
        if row.status == MEASURED:
            assert 0 < row.milliseconds < 1000
            assert row.fraction_of_copy is not None
            assert row.peak_mebibytes is not None


@pytest.mark.gpu
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("channel_filter", ["pixel", "image"])
@pytest.mark.parametrize("dtypes", GPU_DTYPES, ids="+".join)
def test_group_on_a_gpu(dtypes, channel_filter, pass_name):
    check_on_a_gpu(PLAIN, Case(1, 3, 64, 96, 3, channel_filter, *dtypes), pass_name)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what the code generator's own imports deprecate
@pytest.mark.parametrize("pass_name", PASSES)
def test_compiled_group_on_a_gpu(pass_name):
    check_on_a_gpu(PROVIDERS, Case(1, 3, 64, 96, 3, "image", "float32", "bfloat16"), pass_name)


@pytest.mark.gpu
@pytest.mark.parametrize("pass_name", COMPARED_PASSES)
def test_graph_replays_on_a_gpu(pass_name):
    case = Case(2, 16, 14, 14, 3, "image")
    providers = [provider for provider in PLAIN if provider.name in ("kpnops", "device_copy")]
    device = torch.device("cuda")
    measurements = measure_group(providers, case, pass_name, device, 0.05, in_graph=True)
    for measurement in measurements.values():
        assert measurement.row.status == MEASURED, measurement.row
        assert measurement.row.clock == GRAPH
        assert 0 < measurement.row.milliseconds < 10
