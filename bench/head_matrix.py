"""What is measured of the fused head and of the whole network, as parts of the matrix."""

from collections.abc import Iterator
from dataclasses import replace

from bench.any_case import AnyCase
from bench.cases import FORWARD, FORWARD_BACKWARD
from bench.head_cases import HeadCase, all_head_cases
from bench.head_providers import PREDICT, STORED, alternative_for
from bench.photo_cases import RECONSTRUCTION, PhotoCase, gpu_photo_cases
from bench.photo_operations import PHOTO_PROVIDERS
from bench.providers import DEVICE_COPY
from bench.step_cases import STEP, StepCase, gpu_step_cases
from bench.step_operations import STEP_PROVIDERS

HEAD_PARTS = {3: "head", 64: "head64"}
TRAINING = "training"
PHOTOS = "photos"


def head_groups() -> Iterator[tuple[str, HeadCase, str, tuple[str, ...]]]:
    """Yield part, case, pass and providers."""
    for case in all_head_cases():
        providers = (PREDICT, STORED, alternative_for(case), DEVICE_COPY)
        for pass_name in (FORWARD, FORWARD_BACKWARD):
            yield HEAD_PARTS[case.channels], case, pass_name, providers


def step_groups() -> Iterator[tuple[str, StepCase, str, tuple[str, ...]]]:
    """Yield part, case, pass and providers."""
    names = tuple(provider.name for provider in STEP_PROVIDERS)
    for case in gpu_step_cases():
        yield TRAINING, case, STEP, names


def photo_groups() -> Iterator[tuple[str, PhotoCase, str, tuple[str, ...]]]:
    """Yield part, case, pass and providers."""
    names = tuple(provider.name for provider in PHOTO_PROVIDERS)
    for case in gpu_photo_cases():
        yield PHOTOS, case, RECONSTRUCTION, names


def tiny(case: AnyCase, on_cpu: bool) -> AnyCase:
    """Return a case of a few pixels, to try the machinery."""
    height = max(4, case.height // 90)
    if isinstance(case, HeadCase):
        channels = min(case.channels, 4)
        return replace(case, channels=channels, height=height, width=20, features=16)
    if isinstance(case, StepCase):
        dtype = "float32" if on_cpu else case.dtype
        return replace(case, batch=1, height=height, width=20, dtype=dtype)
    if isinstance(case, PhotoCase):
        return replace(case, batch=min(case.batch, 2), height=16, width=20)
    return replace(case, batch=1, channels=min(case.channels, 4), height=height, width=20)
