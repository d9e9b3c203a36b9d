"""Photos through `dkpn.DKPN`: in memory, and from files to files."""

from bench.measure import Measurement
from bench.photo_cases import RECONSTRUCTION, PhotoCase, cpu_photo_cases, gpu_photo_cases
from bench.photo_operations import PHOTO_PROVIDERS
from bench.replay import replay


def chosen(device: str, full: bool) -> tuple[list[PhotoCase], tuple[str, ...], list[str]]:
    """Return cases, passes and providers of a run."""
    cases = gpu_photo_cases() if device == "cuda" else cpu_photo_cases(full)
    return cases, (RECONSTRUCTION,), [provider.name for provider in PHOTO_PROVIDERS]


def bench_reconstruct(measurement: Measurement, benchmark) -> None:
    replay(measurement, benchmark)
