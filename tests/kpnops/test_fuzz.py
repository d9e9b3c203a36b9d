"""Random problems from the whole contract: values, gradients, and mistakes that must be refused.

In `make test` a few problems, the same each time. `make fuzz` draws 10,000 on the CPU path and 300
in the interpreter; it prints its seed, and FUZZ_SEED repeats a run. The CPU path is compared with
the oracle, the interpreter with the CPU path.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

import kpnops
from kpnops._decoupled_filter import route
from tests.fuzz import IN_INTERPRETER, ON_CPU, Mistake, Problem, mistakes, problems
from tests.helpers import (
    CPU,
    LAYOUTS,
    ON_INTERPRETER,
    Case,
    Operands,
    check,
    has_promised_format,
    run_operator,
    to_numpy,
)
from tests.helpers_plans import plans

pytestmark = [
    pytest.mark.usefixtures("poisoned_allocations"),
    # The interpreter computes with NumPy, which warns of what these tests do on purpose.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero):RuntimeWarning"),
]

SEED = os.environ.get("FUZZ_SEED")  # None: few problems, always the same
PARTS = 1 if SEED is None else 8  # so that several workers share them, and a crash costs one part


def examples(quick: int, option: str) -> int:
    """Problems in each part."""
    return quick if SEED is None else -(-int(os.environ.get(option, "0")) // PARTS)


def fuzz(test: Callable[[Any], None], strategy: Any, count: int, part: int) -> None:
    """Run ``test``, a lambda since Hypothesis takes no defaults, on ``count`` problems."""
    run = settings(
        max_examples=max(count, 1),
        database=None,
        deadline=None,
        derandomize=SEED is None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),  # speed and rejections are ours to judge
    )(given(strategy)(test))
    if SEED is not None:
        run = seed(int(SEED) * PARTS + part)(run)
    run()


def compare(problem: Problem, run: Any = None) -> None:
    operands, cotangent = problem.tensors()
    options = {} if run is None else {"run": run}
    actual = check(
        kpnops.decoupled_filter,
        problem.case,
        operands,
        cotangent,
        problem.infinite_or_nan,
        problem.needs_grad,
        **options,
    )
    assert has_promised_format(actual["output"], operands.input)
    for name, source in operands._asdict().items():
        if "grad_" + name in actual:
            assert has_promised_format(actual["grad_" + name], source), name
    if run is None:
        again = run_operator(
            kpnops.decoupled_filter, problem.case, operands, cotangent, problem.needs_grad
        )
        for name, tensor in actual.items():  # to the last bit
            torch.testing.assert_close(again[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", [CPU], indirect=True)
@pytest.mark.parametrize("part", range(PARTS))
def test_cpu_path_against_the_oracle(part: int, device: str) -> None:
    fuzz(lambda problem: compare(problem), problems(ON_CPU), examples(100, "FUZZ_EXAMPLES"), part)


@pytest.mark.parametrize("device", [ON_INTERPRETER], indirect=True)
@pytest.mark.parametrize("part", range(PARTS))
def test_interpreter_against_the_cpu_path(
    part: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_cpu_path(case: Case, arrays: Operands, gradient: np.ndarray) -> dict[str, np.ndarray]:
        """The oracle's results, by the CPU path."""
        operands = Operands(*(None if a is None else torch.from_numpy(a) for a in arrays))
        with monkeypatch.context() as patch:
            patch.setattr(route, "interpreted", lambda: False)
            results = run_operator(
                kpnops.decoupled_filter, case, operands, torch.from_numpy(gradient)
            )
        return {name: to_numpy(tensor, gradient.dtype.type) for name, tensor in results.items()}

    few = problems(IN_INTERPRETER).filter(few_programs)
    count = examples(6, "FUZZ_INTERPRETED")
    fuzz(lambda problem: compare(problem, on_cpu_path), few, count, part)


def few_programs(problem: Problem) -> bool:
    """Whether each launch has at most four programs: the interpreter runs one after the other."""
    case = problem.case
    if case.batch == 0:
        return True
    shared = case.channel_batch == 1 and case.batch > 1
    forms = {"pixel": "shared", "mix": "shared mix"} if shared else {}
    launches = plans(
        (case.batch, case.channels, *case.size),
        form=forms.get(case.channel_filter, case.channel_filter),
        groups=case.groups,
        combine=case.combine,
        softmax=case.normalize is not None,
        output_channels=case.output_channels,
        dtype=case.result_dtype,
        kernel_size=case.kernel_size,
        stride=case.stride,
        dilation=case.dilation,
        padding_mode=case.padding_mode,
        scale=case.scale_factor,
    )
    return all(launch.programs <= 4 for launch in [*launches[0], *launches[1]])


def refuse(mistake: Mistake) -> None:
    arguments = dict(mistake.arguments)
    operands = [arguments.pop(name) for name in Operands._fields]
    with pytest.raises((ValueError, TypeError)) as caught:
        kpnops.decoupled_filter(*operands, **arguments)
    message = str(caught.value)
    assert any(name in message for name in mistake.names), message


@pytest.mark.parametrize("device", [CPU], indirect=True)
@pytest.mark.parametrize("part", range(PARTS))
def test_mistakes_are_refused(part: int, device: str) -> None:
    fuzz(
        refuse, mistakes(ON_CPU), examples(100, "FUZZ_EXAMPLES") // (1 if SEED is None else 5), part
    )


def test_the_draw_covers_the_contract() -> None:
    # What the examples happen to visit; a change of the draw must not lose any of it.
    drawn: list[Problem] = []
    fuzz(lambda problem: drawn.append(problem), problems(ON_CPU), examples(100, "FUZZ_EXAMPLES"), 0)
    cases = [problem.case for problem in drawn]
    for option in ("padding_mode", "combine", "normalize", "channel_filter", "spatial", "batch"):
        assert len({getattr(case, option) for case in cases}) >= 2, option
    for chosen in [
        lambda case: case.scale_factor > 1 and case.normalize is not None,
        lambda case: case.stride != (1, 1) and case.rounding != ("ceil", "ceil"),
        lambda case: case.batch == 0,
        lambda case: case.groups > 1,
        lambda case: len(set(case.dtypes)) > 1,
    ]:
        assert any(map(chosen, cases))
    assert any(problem.specials for problem in drawn)
    assert any(not all(problem.needs_grad) for problem in drawn)
    layouts = {layout for problem in drawn for layout in problem.layouts}
    assert layouts == set(LAYOUTS)
