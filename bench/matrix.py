"""What is measured on a GPU, in the order of importance, in parts that can be run one by one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench.any_case import AnyCase
from bench.cases import (
    BACKWARD,
    CHANNELS_LAST,
    DDF_SHAPES,
    FORWARD,
    FORWARD_BACKWARD,
    SOFTMAX,
    Case,
)
from bench.head_matrix import (
    HEAD_PARTS,
    PHOTOS,
    TRAINING,
    head_groups,
    photo_groups,
    step_groups,
    tiny,
)
from bench.providers import (
    COMPILED_SLICES,
    COMPILED_UNFOLD,
    DDF_CUDA,
    DEVICE_COPY,
    EAGER_SLICES,
    EAGER_UNFOLD,
    KPNOPS,
    UNFUSED,
)
from bench.results import COLD, DEVICE, GRAPH, HOST, WALL

HD = (1080, 1920)
UHD = (2160, 3840)
SQUARE = (512, 512)
FLOAT32 = ("float32", "float32")
BFLOAT16 = ("bfloat16", "bfloat16")
MIXED = ("float32", "bfloat16")  # input, filters

OURS = (KPNOPS, DEVICE_COPY)
EAGER = (KPNOPS, EAGER_SLICES, EAGER_UNFOLD, DEVICE_COPY)
UNROLLED = (KPNOPS, EAGER_SLICES, EAGER_UNFOLD, COMPILED_UNFOLD, DEVICE_COPY)
ALL = (KPNOPS, EAGER_SLICES, EAGER_UNFOLD, COMPILED_SLICES, COMPILED_UNFOLD, DDF_CUDA, DEVICE_COPY)
SOFTMAXES = (KPNOPS, UNFUSED, COMPILED_SLICES, DEVICE_COPY)
EMPTY_OP = "empty_custom_op"
MOST_TINY = 5  # kernel size of a trial

PARTS = (
    *("goals", "channels", "image", "large", "softmax", "ddf", "calls"),
    *(*HEAD_PARTS.values(), TRAINING, PHOTOS, "more"),
)


@dataclass(frozen=True)
class Task:
    """Rows that are measured together."""

    part: str
    case: AnyCase
    pass_name: str
    clock: str  # one of `results.CLOCKS`
    providers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Unique name."""
        return f"{self.part}: {self.case.name} {self.pass_name} ({self.clock})"


def _cases(
    channels: int,
    size: tuple[int, int],
    kernel_sizes: Iterable[int],
    dtypes: Iterable[tuple[str, str]],
    forms: Iterable[str] = ("pixel",),
    **others: str,
) -> list[Case]:
    return [
        Case(1, channels, *size, kernel_size, form, *dtype, **others)
        for kernel_size in kernel_sizes
        for form in forms
        for dtype in dtypes
    ]


def _timed(
    part: str, cases: Iterable[Case], passes: Iterable[str], providers: tuple[str, ...]
) -> Iterator[Task]:
    for case in cases:
        for pass_name in passes:
            chosen = OURS if pass_name == BACKWARD else providers
            yield Task(part, case, pass_name, DEVICE, chosen)


def gpu_tasks() -> list[Task]:
    """Return the whole matrix, the rows that have goals first.

    Returns:
        Tasks in the order of measuring; no row is in two of them.
    """
    both = (FORWARD, FORWARD_BACKWARD)
    three = (FORWARD, BACKWARD, FORWARD_BACKWARD)
    small = [FLOAT32, BFLOAT16, MIXED]
    wide = [FLOAT32, BFLOAT16]
    tasks = [
        *_timed("goals", _cases(3, HD, (3, 5), small), three, ALL),
        *_timed("channels", _cases(64, SQUARE, (3, 5), wide, ("pixel", "image")), three, ALL),
        *_timed("channels", _cases(64, SQUARE, (11,), [BFLOAT16]), three, EAGER),
        *_timed("image", _cases(3, HD, (3, 5), small, ("image",)), three, ALL),
        *_timed("large", _cases(3, UHD, (3, 5), small), three, ALL),
        *_timed("large", _cases(64, (1024, 1024), (3, 5), wide), three, OURS),
        *_softmax_tasks(both),
        *_ddf_tasks(both),
        *_call_tasks(),
        *(
            Task(part, case, pass_name, DEVICE, providers)
            for part, case, pass_name, providers in (
                *head_groups(),
                *step_groups(),
                *photo_groups(),
            )
        ),
        *_timed("more", _cases(3, HD, (7, 11, 21), wide), both, UNROLLED),
        *_timed(
            "more", _cases(64, SQUARE, (3, 5), wide, ("pixel",), layout=CHANNELS_LAST), both, EAGER
        ),
        *_timed("more", _cases(3, HD, (3, 5), wide, ("pixel",), layout=CHANNELS_LAST), both, EAGER),
        *_timed("more", _cases(3, SQUARE, (3, 5), wide), both, ALL),
        *_timed("more", _cases(3, UHD, (7, 11, 21), [BFLOAT16]), both, OURS),
        *_timed("more", _cases(3, UHD, (3, 5), wide, ("image",)), both, OURS),
        *_timed("more", _cases(64, SQUARE, (7, 11), [FLOAT32]), both, OURS),
        *_timed("more", [Case(1, channels, *SQUARE, 5) for channels in (16, 32)], both, ALL),
        *_timed("more", [Case(4, 3, *HD, 5)], both, OURS),
        *_timed("more", _cases(3, UHD, (7,), [FLOAT32]), both, UNROLLED),
    ]
    return list(dict.fromkeys(tasks))


def _softmax_tasks(passes: tuple[str, ...]) -> Iterator[Task]:
    cases = [
        *_cases(3, HD, (5, 3), [FLOAT32, MIXED], normalize=SOFTMAX),
        *_cases(64, SQUARE, (3, 5), [FLOAT32], normalize=SOFTMAX),
        *_cases(3, HD, (7, 11), [FLOAT32], normalize=SOFTMAX),
        *_cases(3, UHD, (5,), [FLOAT32], normalize=SOFTMAX),
    ]
    for case in cases:
        compares = case.kernel_size <= 5 and case.height < UHD[0]
        providers = SOFTMAXES if compares else (KPNOPS, UNFUSED, DEVICE_COPY)
        yield from _timed("softmax", [case], passes, providers)


def _ddf_tasks(passes: tuple[str, ...]) -> Iterator[Task]:
    """DDF's own shapes by graph replay: all of them in float32, ours in bfloat16 on top."""
    for shape in DDF_SHAPES:
        for dtype, providers in (
            (FLOAT32, (KPNOPS, DDF_CUDA, COMPILED_SLICES, DEVICE_COPY)),
            (BFLOAT16, OURS),
        ):
            for pass_name in passes:
                yield Task("ddf", Case(*shape, 3, "image", *dtype), pass_name, GRAPH, providers)


def _call_tasks() -> Iterator[Task]:
    """What a call costs beside the device's work."""
    tiny = Case(1, 3, 8, 8, 3)
    for pass_name in (FORWARD, FORWARD_BACKWARD):
        yield Task("calls", tiny, pass_name, HOST, (KPNOPS, EMPTY_OP))
    for case in (
        Case(1, 3, 256, 256, 5),
        Case(1, 64, 128, 128, 5),
        Case(1, 64, 128, 128, 5, "image"),
        Case(1, 64, 128, 128, 5, "pixel", *BFLOAT16),
        Case(1, 3, 256, 256, 11),
        Case(1, 3, 256, 256, 5, normalize=SOFTMAX),
    ):
        # One fresh process gives forward and backward, cold and warm.
        yield Task("calls", case, FORWARD, COLD, (KPNOPS,))


def tiny_tasks(on_cpu: bool) -> list[Task]:
    """Return the matrix at sizes that are measured within a minute or two, to try the machinery.

    Args:
        on_cpu: whether a CPU measures them: by the wall clock, and what needs no GPU.

    Returns:
        Tasks of the same parts on images of a few pixels, without generated code.
    """
    tasks = []
    for task in gpu_tasks():
        case, clock = task.case, task.clock
        if case.kernel_size > MOST_TINY or (on_cpu and clock in (GRAPH, COLD)):
            continue
        if clock in (DEVICE, GRAPH):
            case = tiny(case, on_cpu)
        providers = tuple(name for name in task.providers if "compiled" not in name)
        clock = WALL if on_cpu and clock == DEVICE else clock
        tasks.append(Task(task.part, case, task.pass_name, clock, providers))
    return _without_repetitions(tasks)


def _without_repetitions(tasks: list[Task]) -> list[Task]:
    """Return the first task for each case, pass and clock: sizes that differ became one."""
    first: dict[tuple[AnyCase, str, str], Task] = {}
    for task in tasks:
        first.setdefault((task.case, task.pass_name, task.clock), task)
    return list(first.values())
