"""Goals: which rows they are about, and how they are judged."""

from dataclasses import replace

import pytest

from bench.cases import BACKWARD, CHANNELS_LAST, FORWARD, FORWARD_BACKWARD, SOFTMAX, Case
from bench.goal import outcomes_of
from bench.goals import CPU_GOALS, GPU_GOALS, goals_for
from bench.results import COLD, DEVICE, GRAPH, HOST, QUIET, WARM
from tests.bench.rows import CASE, measured, skipped

HD = Case(1, 3, 1080, 1920, 3)
WIDE = Case(1, 64, 512, 512, 5)


def device_row(provider="kpnops", milliseconds=1.0, case=HD, pass_name=FORWARD, **others):
    clock = others.pop("clock", DEVICE)
    return measured(provider, milliseconds, case, pass_name, clock, **others)


def reached(goals, rows):
    """What the rows reach of every goal that is about one of them, by the goals' titles."""
    return {
        goal.title: (outcome.reached, outcome.met)
        for goal in goals
        for outcome in outcomes_of(goal, rows)
    }


def test_cpu_goals_are_those_asked_for():
    assert {goal.title: goal.asked for goal in CPU_GOALS} == {
        "CPU, forward: eager unfold ÷ kpnops": 15,
        "CPU, forward+backward: eager unfold ÷ kpnops": 5,
        "CPU, forward: best compiled alternative ÷ kpnops": 0.5,
        "CPU, forward+backward: best compiled alternative ÷ kpnops": 0.75,
        "CPU, predict_filter, forward: our own unfused ÷ fused": 1.0,
        "CPU, predict_filter, forward+backward: our own unfused ÷ fused": 1.0,
    }
    assert goals_for("cpu") is CPU_GOALS
    assert goals_for("cuda") is GPU_GOALS


@pytest.mark.parametrize(("unfold", "met"), [(37.5, True), (37.4, False)])
def test_goal_is_a_ratio_of_medians(unfold, met):
    rows = [measured(milliseconds=2.5), measured("eager_unfold", unfold), skipped("ddf_cuda")]
    assert reached(CPU_GOALS, rows) == {CPU_GOALS[0].title: (unfold / 2.5, met)}


def test_best_compiled_alternative_is_the_faster_one():
    rows = [
        measured(milliseconds=2.0, pass_name=FORWARD_BACKWARD),
        measured("compiled_slices", 1.6, pass_name=FORWARD_BACKWARD),
        measured("compiled_unfold", 1.4, pass_name=FORWARD_BACKWARD),
        measured("eager_slices", 1.0, pass_name=FORWARD_BACKWARD),
    ]
    assert reached(CPU_GOALS, rows) == {CPU_GOALS[3].title: (0.7, False)}


def test_goal_is_judged_within_one_group():
    rows = [measured(), measured("eager_unfold", 300.0, pass_name=FORWARD_BACKWARD)]
    assert reached(CPU_GOALS, rows) == {}
    rows = [measured(), measured("eager_unfold", 300.0, case=replace(CASE, kernel_size=3))]
    assert reached(CPU_GOALS, rows) == {}


def test_outcome_knows_that_others_were_busy():
    rows = [measured(other_load=2 * QUIET), measured("eager_unfold", 300.0)]
    (outcome,) = outcomes_of(CPU_GOALS[0], rows)
    assert not outcome.quiet


# The table of the goals, a row of it each.
@pytest.mark.parametrize(
    ("case", "pass_name", "asked"),
    [
        (HD, FORWARD, 85),
        (replace(HD, kernel_size=5), FORWARD, 85),
        (replace(HD, input_dtype="bfloat16", filter_dtype="bfloat16"), FORWARD, 75),
        (replace(HD, kernel_size=5, filter_dtype="bfloat16"), FORWARD, 70),
        (replace(HD, filter_dtype="bfloat16"), FORWARD, 80),
        (replace(HD, kernel_size=5), BACKWARD, 65),
        (replace(HD, filter_dtype="bfloat16"), BACKWARD, 55),
        (WIDE, FORWARD, 80),
        (replace(WIDE, channel_filter="image"), FORWARD, 60),
        (replace(WIDE, channel_filter="image"), BACKWARD, 28),
        (replace(WIDE, kernel_size=3), BACKWARD, 55),
        (
            replace(WIDE, kernel_size=11, input_dtype="bfloat16", filter_dtype="bfloat16"),
            FORWARD,
            50,
        ),
    ],
)
def test_share_of_a_copy(case, pass_name, asked):
    for share, met in ((asked / 100, True), (asked / 100 - 0.01, False)):
        rows = [device_row(case=case, pass_name=pass_name, fraction_of_copy=share)]
        goals = [goal for goal in GPU_GOALS if goal.unit == "%" and not goal.at_most]
        (outcome,) = [outcome for goal in goals for outcome in outcomes_of(goal, rows)]
        assert outcome.goal.asked == pytest.approx(asked)
        assert outcome.met is met


@pytest.mark.parametrize(
    "case",
    [
        replace(HD, height=512, width=512),
        replace(HD, layout=CHANNELS_LAST),
        replace(HD, normalize=SOFTMAX),
        replace(HD, kernel_size=7),
        replace(WIDE, channels=32),
    ],
)
def test_share_is_not_asked_of_other_rows(case):
    rows = [device_row(case=case, fraction_of_copy=0.1)]
    assert not any("share of a copy" in title for title in reached(GPU_GOALS, rows))


def test_ratios_on_a_gpu():
    rows = [
        device_row(milliseconds=1.0, case=WIDE),
        device_row("compiled_unfold", 2.9, WIDE),
        device_row("ddf_cuda", 2.0, WIDE),
        device_row("softmax_kpnops", 0.5, WIDE),
        device_row("device_copy", 0.021, WIDE),
    ]
    assert reached(GPU_GOALS, rows) == {
        "forward: best alternative ÷ kpnops": (2.0, True),
        "forward, C ≥ 16, floor ≥ 20 µs: best of PyTorch ÷ kpnops": (2.9, False),
    } | _memory(0.0)
    rows[-1] = device_row("device_copy", 0.019, WIDE)
    assert "forward, C ≥ 16, floor ≥ 20 µs: best of PyTorch ÷ kpnops" not in reached(
        GPU_GOALS, rows
    )


def _memory(value):
    return {
        "peak memory beyond inputs, outputs and gradients, tensors ≥ 64 MB": (value, value <= 2)
    }


def test_forward_and_backward_have_ratios_of_their_own():
    both = FORWARD_BACKWARD
    rows = [
        device_row(milliseconds=1.0, case=WIDE, pass_name=both),
        device_row("compiled_slices", 3.9, WIDE, both),
    ]
    assert reached(GPU_GOALS, rows) == {
        "forward + backward: best alternative ÷ kpnops": (3.9, True),
        "forward + backward, C=64: best alternative ÷ kpnops": (3.9, False),
    } | _memory(0.0)


def test_softmax_is_compared_with_our_own_op():
    for case, title, met in (
        (replace(HD, kernel_size=5, normalize=SOFTMAX), "C=3, K ≥ 5", False),
        (replace(HD, normalize=SOFTMAX), "elsewhere", True),
    ):
        rows = [device_row(case=case), device_row("softmax_kpnops", 1.7, case)]
        found = {
            title: got for title, got in reached(GPU_GOALS, rows).items() if "softmax" in title
        }
        ((name, got),) = found.items()
        assert title in name
        assert got == (1.7, met)


def test_memory_is_asked_of_large_tensors_only():
    large = replace(HD, kernel_size=5)  # 282 MB in the forward
    excess = large.argument_bytes + large.result_bytes
    peak = (large.result_bytes + 0.03 * excess) / 2**20
    ((value, met),) = reached(GPU_GOALS, [device_row(case=large, peak_mebibytes=peak)]).values()
    assert value == pytest.approx(3.0)
    assert not met
    small = replace(HD, height=100, width=100)
    assert reached(GPU_GOALS, [device_row(case=small, peak_mebibytes=9.0)]) == {}


def test_costs_of_a_call():
    tiny = Case(1, 3, 8, 8, 3)
    rows = [
        device_row(case=tiny, clock=HOST, milliseconds=0.059),
        device_row(case=tiny, clock=HOST, milliseconds=0.3, pass_name=FORWARD_BACKWARD),
        device_row("empty_custom_op", 9.0, tiny, clock=HOST),
        device_row(case=tiny, clock=COLD, milliseconds=9000.0),
        device_row("_tile_fwd_kernel", 3100.0, tiny, clock=COLD),
        device_row(case=tiny, clock=WARM, milliseconds=40.0),
    ]
    assert reached(GPU_GOALS, rows) == {
        "host cost of a call, forward": (pytest.approx(59), True),
        "host cost of a call, forward + backward": (pytest.approx(300), False),
        "first launch of each kernel, nothing on disk": (3100.0, False),
        "first call, compiled kernels on disk": (40.0, True),
    }


@pytest.mark.parametrize(("side", "asked"), [(28, 1.0), (56, 1.3)])
def test_ddf_shapes_by_graph_replay(side, asked):
    case = Case(32, 256, side, side, 3, "image")
    rows = [device_row(case=case, clock=GRAPH), device_row("ddf_cuda", 1.2, case, clock=GRAPH)]
    ((title, got),) = reached(GPU_GOALS, rows).items()
    assert title.startswith("DDF's shapes")
    assert got == (1.2, asked <= 1.2)


def test_titles_are_unique():
    for goals in (CPU_GOALS, GPU_GOALS):
        assert len({goal.title for goal in goals}) == len(goals)
