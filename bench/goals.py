"""What the project asks of its speed, and what rows say of it."""

from bench.cases import BACKWARD, CONTIGUOUS, FORWARD, FORWARD_BACKWARD, SOFTMAX
from bench.goal import Goal, ratio_to
from bench.head_goals import HEAD_CPU_GOALS, HEAD_GPU_GOALS
from bench.providers import (
    COMPILED_SLICES,
    COMPILED_UNFOLD,
    DDF_CUDA,
    DEVICE_COPY,
    EAGER_UNFOLD,
    KPNOPS,
    UNFUSED,
)
from bench.results import COLD, DEVICE, GRAPH, HOST, OWN, WALL, WARM, Row

COMPILED = (COMPILED_SLICES, COMPILED_UNFOLD)
HD_PIXELS = 1080 * 1920
SQUARE_PIXELS = 512 * 512
# Below this a copy of a row's bytes is so short that other costs rule.
FLOOR_MILLISECONDS = 0.020
LARGE_BYTES = 64e6

# (pass, channels, kernel sizes, forms): share of a copy for float32, bfloat16, and bfloat16 filters
# with a float32 image; None where nothing is asked.
SHARES = [
    ((FORWARD, 3, (3,), ("pixel", "image")), (0.85, 0.75, 0.80)),
    ((FORWARD, 3, (5,), ("pixel", "image")), (0.85, 0.60, 0.70)),
    ((FORWARD, 64, (3,), ("pixel",)), (0.85, 0.70, None)),
    ((FORWARD, 64, (3,), ("image",)), (0.75, 0.55, None)),
    ((FORWARD, 64, (5,), ("pixel",)), (0.80, 0.60, None)),
    ((FORWARD, 64, (5,), ("image",)), (0.60, 0.20, None)),
    ((FORWARD, 64, (11,), ("pixel",)), (None, 0.50, None)),
    ((BACKWARD, 3, (3, 5), ("pixel",)), (0.65, 0.45, 0.55)),
    ((BACKWARD, 64, (3,), ("pixel",)), (0.55, 0.45, None)),
    ((BACKWARD, 64, (3,), ("image",)), (0.35, 0.25, None)),
    ((BACKWARD, 64, (5,), ("pixel",)), (0.45, 0.40, None)),
    ((BACKWARD, 64, (5,), ("image",)), (0.28, 0.15, None)),
]
DTYPES = ("float32", "bfloat16", "bfloat16+float32")


def _share(row: Row, group: list[Row]) -> float | None:
    return None if row.fraction_of_copy is None else 100 * row.fraction_of_copy


def _milliseconds(row: Row, group: list[Row]) -> float | None:
    return row.milliseconds


def _microseconds(row: Row, group: list[Row]) -> float | None:
    return None if row.milliseconds is None else 1e3 * row.milliseconds


def _memory(row: Row, group: list[Row]) -> float | None:
    share = row.memory_beyond_results
    return None if share is None else 100 * share


def _ratio_above_floor(row: Row, group: list[Row]) -> float | None:
    copy = next((other.milliseconds for other in group if other.provider == DEVICE_COPY), None)
    if copy is None or copy < FLOOR_MILLISECONDS:
        return None
    return ratio_to(None)(row, [other for other in group if other.provider != DDF_CUDA])


def _ours(row: Row, clock: str, pass_name: str | None = None) -> bool:
    passes = (FORWARD, BACKWARD, FORWARD_BACKWARD) if pass_name is None else (pass_name,)
    return row.provider == KPNOPS and row.clock == clock and row.pass_name in passes


def _is_large(row: Row) -> bool:
    case = row.case
    least = HD_PIXELS if case.channels == 3 else SQUARE_PIXELS
    return case.height * case.width >= least


def _share_goals() -> list[Goal]:
    goals = []
    for (pass_name, channels, sizes, forms), asked in SHARES:
        for dtype, share in zip(DTYPES, asked, strict=True):
            if share is None:
                continue

            def covers(
                row: Row,
                pass_name=pass_name,
                channels=channels,
                sizes=sizes,
                forms=forms,
                dtype=dtype,
            ) -> bool:
                case = row.case
                return (
                    _ours(row, DEVICE, pass_name)
                    and _is_large(row)
                    and (case.channels, case.dtype) == (channels, dtype)
                    and case.kernel_size in sizes
                    and case.channel_filter in forms
                    and (case.layout, case.normalize) == (CONTIGUOUS, None)
                )

            sides = " and ".join(str(size) for size in sizes)
            per = " or ".join(f"per {form}" for form in forms)
            title = f"{pass_name}, C={channels}, K={sides}, {per}, {dtype}: share of a copy"
            goals.append(Goal(title, "cuda", 100 * share, "%", covers, _share))
    return goals


def _ratio_goals() -> list[Goal]:
    best = ratio_to(None)
    both = FORWARD_BACKWARD
    return [
        Goal(
            "forward: best alternative ÷ kpnops",
            *("cuda", 1.0, "×"),
            lambda row: _ours(row, DEVICE, FORWARD),
            best,
        ),
        Goal(
            "forward, C ≥ 16, floor ≥ 20 µs: best of PyTorch ÷ kpnops",
            *("cuda", 3.0, "×"),
            lambda row: _ours(row, DEVICE, FORWARD) and row.case.channels >= 16,
            _ratio_above_floor,
        ),
        Goal(
            "forward + backward: best alternative ÷ kpnops",
            *("cuda", 1.5, "×"),
            lambda row: _ours(row, DEVICE, both),
            best,
        ),
        Goal(
            "forward + backward, C=3, K=5: best alternative ÷ kpnops",
            *("cuda", 3.0, "×"),
            lambda row: (
                _ours(row, DEVICE, both) and (row.case.channels, row.case.kernel_size) == (3, 5)
            ),
            best,
        ),
        Goal(
            "forward + backward, C=64: best alternative ÷ kpnops",
            *("cuda", 4.0, "×"),
            lambda row: _ours(row, DEVICE, both) and row.case.channels == 64,
            best,
        ),
        *_softmax_goals(),
        Goal(
            "DDF's shapes, float32, below 56²: its CUDA op ÷ kpnops",
            *("cuda", 1.0, "×"),
            lambda row: _ours(row, GRAPH) and row.case.height < 56,
            ratio_to((DDF_CUDA,)),
        ),
        Goal(
            "DDF's shapes, float32, from 56² up: its CUDA op ÷ kpnops",
            *("cuda", 1.3, "×"),
            lambda row: _ours(row, GRAPH) and row.case.height >= 56,
            ratio_to((DDF_CUDA,)),
        ),
    ]


def _softmax_goals() -> list[Goal]:
    def is_main(row: Row) -> bool:
        return row.case.channels == 3 and row.case.kernel_size >= 5

    def covers(row: Row) -> bool:
        return _ours(row, DEVICE, FORWARD) and row.case.normalize == SOFTMAX

    unfused = ratio_to((UNFUSED,))
    return [
        Goal(
            "forward, softmax, C=3, K ≥ 5: softmax and our own op ÷ fused",
            *("cuda", 1.8, "×"),
            lambda row: covers(row) and is_main(row),
            unfused,
        ),
        Goal(
            "forward, softmax, elsewhere: softmax and our own op ÷ fused",
            *("cuda", 1.0, "×"),
            lambda row: covers(row) and not is_main(row),
            unfused,
        ),
    ]


def _cost_goals() -> list[Goal]:
    def large_tensors(row: Row) -> bool:
        case = row.case
        held = case.argument_bytes + case.result_bytes
        if row.pass_name != FORWARD:
            held += case.argument_bytes + case.result_bytes
        return _ours(row, DEVICE) and held >= LARGE_BYTES

    return [
        Goal(
            "peak memory beyond inputs, outputs and gradients, tensors ≥ 64 MB",
            *("cuda", 2.0, "%", large_tensors, _memory, True),
        ),
        Goal(
            "first call, compiled kernels on disk",
            *("cuda", 50.0, "ms", lambda row: _ours(row, WARM), _milliseconds, True),
        ),
        Goal(
            "first launch of each kernel, nothing on disk",
            *("cuda", 3000.0, "ms"),
            lambda row: row.clock == COLD and row.role == OWN and row.provider != KPNOPS,
            _milliseconds,
            True,
        ),
        Goal(
            "host cost of a call, forward",
            *("cuda", 60.0, "µs", lambda row: _ours(row, HOST, FORWARD), _microseconds, True),
        ),
        Goal(
            "host cost of a call, forward + backward",
            *("cuda", 200.0, "µs"),
            lambda row: _ours(row, HOST, FORWARD_BACKWARD),
            _microseconds,
            True,
        ),
    ]


def _cpu_goals() -> list[Goal]:
    asked = [
        ("eager unfold", (EAGER_UNFOLD,), {FORWARD: 15.0, FORWARD_BACKWARD: 5.0}),
        ("best compiled alternative", COMPILED, {FORWARD: 0.5, FORWARD_BACKWARD: 0.75}),
    ]
    return [
        Goal(
            f"CPU, {pass_name}: {name} ÷ kpnops",
            *("cpu", ratio, "×"),
            lambda row, pass_name=pass_name: _ours(row, WALL, pass_name),
            ratio_to(names),
        )
        for name, names, ratios in asked
        for pass_name, ratio in ratios.items()
    ]


FILTER_CPU_GOALS = _cpu_goals()
CPU_GOALS = [*FILTER_CPU_GOALS, *HEAD_CPU_GOALS]
GPU_GOALS = [*_share_goals(), *_ratio_goals(), *_cost_goals(), *HEAD_GPU_GOALS]


def goals_for(kind: str) -> list[Goal]:
    """Return the goals of a kind of device, "cpu" or "cuda"."""
    return CPU_GOALS if kind == "cpu" else GPU_GOALS
