"""Groups: checked before timed, skips and failures listed, ratios right."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import bench.measure
import bench.memory
from bench.cases import FORWARD, FORWARD_BACKWARD, GPU_DTYPES, PASSES, Case
from bench.measure import measure_group
from bench.operations import calls_of, slices_operation
from bench.providers import PROVIDERS, Provider
from bench.results import FAILED, MEASURED, SKIPPED
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


@pytest.mark.parametrize("pass_name", PASSES)
def test_group_on_a_cpu(pass_name):
    measurements = measure_group(PLAIN, CASE, pass_name, CPU, seconds=0.01)
    assert statuses(measurements) == {
        "kpnops": MEASURED,
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
            assert row.median is None
            assert measurement.durations == []
            continue
        assert row.reason == ""
        assert row.rounds == len(measurement.durations) >= TURNS
        assert row.quartiles[0] <= row.median <= row.quartiles[1]
        assert row.bytes_per_second == row.minimal_bytes / row.median
        assert row.first_call > 0
        assert row.yardstick == (row.error is None)
    kpnops = measurements["kpnops"].row
    assert kpnops.time_over_kpnops == 1
    alternatives = [measurements[name].row for name in ("eager_unfold", "eager_slices")]
    fastest = min(row.median for row in alternatives)
    assert kpnops.time_over_best_alternative == kpnops.median / fastest
    copy = measurements["device_copy"].row
    assert copy.fraction_of_copy == 1
    assert kpnops.fraction_of_copy == copy.median / kpnops.median


def test_kpnops_saves_nothing_and_unfold_saves_columns_and_filters():
    measurements = measure_group(PLAIN[:2], CASE, FORWARD_BACKWARD, CPU, seconds=0)
    assert measurements["kpnops"].row.saved_bytes == 0
    columns = CASE.pixels * CASE.channels * CASE.taps * 4
    assert measurements["eager_unfold"].row.saved_bytes == 2 * columns


def test_wrong_provider_fails_and_the_others_are_timed():
    providers = [PLAIN[0], wrong_provider(), PLAIN[2]]
    measurements = measure_group(providers, CASE, FORWARD, CPU, seconds=0.01)
    assert statuses(measurements) == {
        "kpnops": MEASURED,
        "wrong": FAILED,
        "eager_slices": MEASURED,
    }
    wrong = measurements["wrong"]
    assert "result: an error is" in wrong.row.reason
    assert wrong.row.median is None
    assert wrong.durations == []
    # Nobody is compared with what is wrong.
    slices = measurements["eager_slices"].row
    assert measurements["kpnops"].row.time_over_best_alternative == pytest.approx(
        measurements["kpnops"].row.median / slices.median
    )


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
    assert measurements["kpnops"].row.median is None
    assert measurements["wrong"].row.status == FAILED


def test_without_memory_nothing_is_made(monkeypatch):
    monkeypatch.setattr(bench.measure, "free_memory", lambda device: 1000)
    monkeypatch.delattr(bench.measure, "make_tensors")
    measurements = measure_group(PLAIN, CASE, FORWARD, CPU, seconds=1.0)
    assert set(statuses(measurements).values()) == {SKIPPED}
    assert "over half of" in measurements["kpnops"].row.reason


def test_oracle_that_does_not_fit_is_computed_for_each_provider(monkeypatch):
    made = []

    def counted(*arguments):
        made.append(arguments)
        return tiles(*arguments)

    tiles = bench.measure.oracle_tiles
    monkeypatch.setattr(bench.measure, "oracle_tiles", counted)
    monkeypatch.setattr(bench.memory, "KPNOPS_CPU_WORKSPACE", 0)
    providers = [PLAIN[0], PLAIN[2]]
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


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what the code generator's own imports deprecate
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("channel_filter", ["pixel", "image"])
@pytest.mark.parametrize("dtypes", GPU_DTYPES, ids="+".join)
def test_group_on_a_gpu(dtypes, channel_filter, pass_name):
    case = Case(1, 3, 64, 96, 3, channel_filter, *dtypes)
    measurements = measure_group(PROVIDERS, case, pass_name, torch.device("cuda"), seconds=0.05)
    for name, measurement in measurements.items():
        row = measurement.row
        assert row.status == (SKIPPED if name == "ddf_cuda" and row.reason else MEASURED), row
        if row.status == MEASURED:
            assert 0 < row.median < 1
            assert row.fraction_of_copy is not None
            assert row.peak_bytes is not None
