"""What the project asks of the fused head."""

from bench.cases import FORWARD, FORWARD_BACKWARD
from bench.goal import Covers, Goal, ratio_to
from bench.head_cases import BF16, IEEE, TF32, HeadCase
from bench.head_providers import (
    COMPILED_HEAD_SLICES,
    COMPILED_HEAD_UNFOLD,
    PREDICT,
    STORED,
)
from bench.results import DEVICE, WALL, Row

MOST_MEGABYTES = 64.0
# The forward, by mode: the time of our own unfused route over that of the fused one for few
# channels and large filters, and elsewhere; and that of compiled PyTorch, None where nothing is
# asked. What is asked of forward + backward is this share of it.
OWN_LARGE = {TF32: 1.0, BF16: 0.7, IEEE: 0.4}
OWN_ELSEWHERE = {TF32: 0.7, BF16: 0.5, IEEE: 0.4}
COMPILED_LARGE = {TF32: 2.0, BF16: 1.3}
BACKWARD_SHARE = 0.7


def megabytes_beyond(row: Row, group: list[Row]) -> float | None:
    """Return the peak beyond arguments, result and gradients, and beyond a float32 number for each
    pixel, in MB."""
    beyond = row.bytes_beyond_results
    if beyond is None or not isinstance(row.case, HeadCase):
        return None
    return max(0.0, beyond - row.case.statistics_bytes) / 1e6


def _is_large(case: HeadCase) -> bool:
    return case.channels == 3 and case.kernel_size >= 11


def _covers(clock: str, pass_name: str, mode: str | None, large: bool | None) -> Covers:
    """What is about rows of the fused head; None stands for all modes, or all sizes."""

    def covers(row: Row) -> bool:
        case = row.case
        return (
            isinstance(case, HeadCase)
            and (row.provider, row.clock, row.pass_name) == (PREDICT, clock, pass_name)
            and mode in (None, case.mode)
            and large in (None, _is_large(case))
        )

    return covers


def _gpu_goals() -> list[Goal]:
    routes = [
        ("C=3, K ≥ 11", True, "our own unfused", (STORED,), OWN_LARGE),
        (
            "C=3, K ≥ 11",
            True,
            "compiled PyTorch",
            (COMPILED_HEAD_SLICES, COMPILED_HEAD_UNFOLD),
            COMPILED_LARGE,
        ),
        ("elsewhere", False, "our own unfused", (STORED,), OWN_ELSEWHERE),
    ]
    goals = [
        Goal(
            f"predict_filter, {pass_name}, {where}, {mode}: {who} ÷ fused",
            *("cuda", share * asked, "×"),
            _covers(DEVICE, pass_name, mode, large),
            ratio_to(names),
        )
        for pass_name, share in ((FORWARD, 1.0), (FORWARD_BACKWARD, BACKWARD_SHARE))
        for where, large, who, names, by_mode in routes
        for mode, asked in by_mode.items()
    ]
    return goals + [
        Goal(
            f"predict_filter, {pass_name}: peak memory beyond arguments, result, gradients and "
            "4 bytes a pixel",
            *("cuda", MOST_MEGABYTES, "MB"),
            _covers(DEVICE, pass_name, None, None),
            megabytes_beyond,
            at_most=True,
        )
        for pass_name in (FORWARD, FORWARD_BACKWARD)
    ]


def _cpu_goals() -> list[Goal]:
    return [
        Goal(
            f"CPU, predict_filter, {pass_name}: our own unfused ÷ fused",
            *("cpu", 1.0, "×"),
            _covers(WALL, pass_name, None, None),
            ratio_to((STORED,)),
        )
        for pass_name in (FORWARD, FORWARD_BACKWARD)
    ]


HEAD_CPU_GOALS = _cpu_goals()
HEAD_GPU_GOALS = _gpu_goals()
