"""Rows and runs made up for the tests of what is made of them."""

from bench.cases import FORWARD, Case
from bench.environment import Hardware
from bench.providers import KPNOPS
from bench.results import (
    FAILED,
    MEASURED,
    OWN,
    SKIPPED,
    WALL,
    YARDSTICK,
    Header,
    Results,
    Row,
)
from bench.workloads import BY_NAME

CASE = Case(1, 3, 512, 512, 5)
CPU_HARDWARE = Hardware("cpu", "Some CPU", "Some CPU", 2, 1, 2**34)
GPU_HARDWARE = Hardware("cuda", "NVIDIA H200", "Some CPU", 16, 8, 2**37)
DATE = "2026-01-31T12:00:00+00:00"
# Who is no provider of its own: kernels, and an empty operator.
OTHER_ROLES = {"empty_custom_op": YARDSTICK}


def role_of(provider: str) -> str:
    if provider in BY_NAME:
        return BY_NAME[provider].role
    return OTHER_ROLES.get(provider, OWN)


def measured(
    provider: str = KPNOPS,
    milliseconds: float = 2.5,
    case: Case = CASE,
    pass_name: str = FORWARD,
    clock: str = WALL,
    **others,
) -> Row:
    values = {
        "rounds": 50,
        "milliseconds": milliseconds,
        "quartiles": (0.9 * milliseconds, 1.2 * milliseconds),
        "peak_mebibytes": 3.0,
        "commit": "abc1234",
        "source": "0123456789ab",
        "date": DATE,
    }
    role = role_of(provider)
    return Row(case, pass_name, clock, provider, role, MEASURED, **(values | others))


def skipped(provider: str, reason: str = "not here", case: Case = CASE) -> Row:
    return Row(case, FORWARD, WALL, provider, role_of(provider), SKIPPED, reason)


def failed(provider: str, reason: str, case: Case = CASE) -> Row:
    return Row(case, FORWARD, WALL, provider, role_of(provider), FAILED, reason)


def run(rows: list[Row], hardware: Hardware = CPU_HARDWARE, **others) -> Results:
    versions = {"python": "3.11.9", "system": "Linux", "torch": "2.13.0+cpu"}
    name = "cpu-2core" if hardware.kind == "cpu" else "nvidia-h200"
    header = Header(name, DATE, "abc1234", hardware, None, versions, 50.0, None)
    return Results(header.__class__(**(vars(header) | others)), rows)
