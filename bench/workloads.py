"""What every kind of case has of its own: tensors, providers, and the check of a result."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.any_case import AnyCase
from bench.cases import FORWARD, Case, Tensors, make_tensors
from bench.head_cases import HeadCase, HeadTensors, make_head_tensors
from bench.head_oracle import check_head, head_oracle_tiles
from bench.head_providers import HEAD_PROVIDERS, PREDICT
from bench.oracle import check, oracle_tiles
from bench.photo_cases import PhotoCase, PhotoTensors, make_photo_tensors
from bench.photo_operations import INFER, PHOTO_PROVIDERS, photo_checker
from bench.providers import KPNOPS, PROVIDERS, Provider
from bench.step_cases import StepCase, StepTensors, make_step_tensors
from bench.step_operations import STEP_FUSED, STEP_PROVIDERS, step_checker

# How far a result is off, as a multiple of its budget; raises WrongResultError beyond that.
Checker = Callable[[Provider, tuple[Tensor, ...]], float]
# Whom the others are compared with.
SUBJECTS = (KPNOPS, PREDICT, STEP_FUSED, INFER)
BY_NAME = {
    provider.name: provider
    for provider in (*PROVIDERS, *HEAD_PROVIDERS, *STEP_PROVIDERS, *PHOTO_PROVIDERS)
}


@dataclass(frozen=True)
class Workload:
    """One kind of case."""

    make_tensors: Callable[[Any, torch.device], Any]
    # from a case, its tensors, a pass, and the device's free bytes
    make_checker: Callable[[Any, Any, str, int], Checker]
    providers: list[Provider]


def workload_of(case: AnyCase) -> Workload:
    """Return what the case's kind has of its own."""
    return _WORKLOADS[type(case)]


def _gradient_numbers(tensors: Tensors | HeadTensors, pass_name: str) -> int:
    if pass_name == FORWARD:
        return 0
    return sum(argument.numel() for argument in tensors.arguments)


def _filter_checker(case: Case, tensors: Tensors, pass_name: str, free: int) -> Checker:
    """Keep the oracle's tiles if they fit into an eighth of the free memory."""
    numbers = case.pixels * case.channels + _gradient_numbers(tensors, pass_name)
    make = partial(oracle_tiles, case, tensors, pass_name)
    # float64, exact values and magnitudes
    kept = list(make()) if 2 * 8 * numbers <= free // 8 else None

    def checker(provider: Provider, outputs: tuple[Tensor, ...]) -> float:
        return check(case, outputs, kept or make(), provider.working_dtype(case), pass_name)

    return checker


def _head_checker(case: HeadCase, tensors: HeadTensors, pass_name: str, free: int) -> Checker:
    """Keep the oracle's tiles if they fit into a fifth of the free memory: making them takes half a
    minute at the largest sizes."""
    numbers = case.pixels * case.channels + _gradient_numbers(tensors, pass_name)
    make = partial(head_oracle_tiles, case, tensors, pass_name)
    kept = list(make()) if 8 * numbers <= free // 5 else None

    def checker(provider: Provider, outputs: tuple[Tensor, ...]) -> float:
        return check_head(case, outputs, kept or make(), pass_name)

    return checker


def _step_checker(case: StepCase, tensors: StepTensors, pass_name: str, free: int) -> Checker:
    return step_checker(case, tensors)


def _photo_checker(case: PhotoCase, tensors: PhotoTensors, pass_name: str, free: int) -> Checker:
    return photo_checker(case, tensors)


_WORKLOADS: dict[type, Workload] = {
    Case: Workload(make_tensors, _filter_checker, PROVIDERS),
    HeadCase: Workload(make_head_tensors, _head_checker, HEAD_PROVIDERS),
    StepCase: Workload(make_step_tensors, _step_checker, STEP_PROVIDERS),
    PhotoCase: Workload(make_photo_tensors, _photo_checker, PHOTO_PROVIDERS),
}
