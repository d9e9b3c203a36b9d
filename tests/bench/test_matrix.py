"""The matrix: complete, without repetitions, the rows with goals first."""

from collections import Counter

import pytest

from bench.cases import BACKWARD, FORWARD, FORWARD_BACKWARD, Case
from bench.goals import GPU_GOALS
from bench.matrix import EMPTY_OP, MIXED, PARTS, gpu_tasks, tiny_tasks
from bench.photo_cases import RECONSTRUCTION
from bench.providers import COMPILED_SLICES
from bench.results import COLD, DEVICE, GRAPH, HOST, WALL
from bench.step_cases import STEP
from bench.workloads import BY_NAME
from tests.bench.rows import measured

TASKS = gpu_tasks()


def test_no_row_is_measured_twice():
    keys = Counter(
        (task.case, task.pass_name, task.clock, name) for task in TASKS for name in task.providers
    )
    assert set(keys.values()) == {1}
    assert len({task.name for task in TASKS}) == len(TASKS)


def test_parts_come_in_their_order_and_are_named():
    assert list(dict.fromkeys(task.part for task in TASKS)) == list(PARTS)


def test_providers_are_known_and_slices_are_compiled_for_few_taps_only():
    for task in TASKS:
        assert all(name in BY_NAME or name == EMPTY_OP for name in task.providers)
        assert COMPILED_SLICES not in task.providers or task.case.kernel_size <= 5


def test_every_goal_is_about_some_row():
    rows = []
    for task in TASKS:
        names = [*task.providers, "_tile_fwd_kernel"] if task.clock == COLD else task.providers
        clocks = [task.clock, "first call, warm"] if task.clock == COLD else [task.clock]
        rows += [
            measured(name, case=task.case, pass_name=task.pass_name, clock=clock)
            for name in names
            for clock in clocks
        ]
    for goal in GPU_GOALS:
        assert any(goal.covers(row) for row in rows), goal.title


def test_the_rows_asked_for_are_there():
    timed = {(task.case, task.pass_name) for task in TASKS if task.clock == DEVICE}
    cases = {case for case, _ in timed}
    for kernel_size in (3, 5, 7, 11, 21):
        assert any(case.kernel_size == kernel_size and case.height == 1080 for case in cases)
    assert {case.layout for case in cases} == {"contiguous", "channels_last"}
    assert {case.normalize for case in cases} == {None, "softmax"}
    filters = [case for case in cases if isinstance(case, Case)]
    assert any((case.input_dtype, case.filter_dtype) == MIXED for case in filters)
    passes = {FORWARD, BACKWARD, FORWARD_BACKWARD, STEP, RECONSTRUCTION}
    assert {pass_name for _, pass_name in timed} == passes
    in_graph = [task.case for task in TASKS if task.clock == GRAPH]
    assert len({case.shape for case in in_graph if case.dtype == "float32"}) == 7
    assert any(task.clock == HOST for task in TASKS)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_tiny_tasks_are_of_every_part_and_small(on_cpu):
    tasks = tiny_tasks(on_cpu)
    assert {task.part for task in tasks} == set(PARTS) - ({"ddf"} if on_cpu else set())
    clocks = {WALL, HOST} if on_cpu else {DEVICE, GRAPH, HOST, COLD}
    assert {task.clock for task in tasks} == clocks
    for task in tasks:
        case = task.case
        if task.clock != COLD:
            assert case.batch * case.channels * case.height * case.width < 3000
        assert not any("compiled" in name for name in task.providers)
    keys = [(task.case, task.pass_name, task.clock) for task in tasks]
    assert len(set(keys)) == len(keys)
