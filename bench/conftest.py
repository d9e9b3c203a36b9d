"""How `pytest bench/` runs: options, the choice of cases, the report at the end."""

import warnings
from pathlib import Path

import pytest
import torch
from pytest_benchmark.logger import PytestBenchmarkWarning

from bench.cases import (
    COMPARED_PASSES,
    CPU_DTYPES,
    GPU_DTYPES,
    all_cases,
    default_cpu_cases,
)
from bench.providers import PROVIDERS, UNFUSED
from bench.results import save
from bench.session import MEASUREMENTS, Measurements

RESULTS_FOLDER = Path(__file__).parent / "results"
BENCHMARK_WARNING = "pytest_benchmark.logger.PytestBenchmarkWarning"
DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kpnops benchmarks")
    group.addoption("--full", action="store_true", help="every case on a CPU too (hours)")
    group.addoption(
        "--device",
        choices=["cpu", "cuda"],
        default=DEFAULT_DEVICE,
        help="where to run (default here: %(default)s)",
    )
    group.addoption(
        "--results",
        default="local",
        metavar="NAME",
        help="write bench/results/NAME.json and .png (default: local, which git ignores)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Elsewhere tests are called test_*; here alone they are called bench_*.
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    # "Nothing to compare with" and "another machine" are news, not errors as other warnings are;
    # the second line is for those that come before pytest applies the first.
    config.addinivalue_line("filterwarnings", f"default::{BENCHMARK_WARNING}")
    warnings.filterwarnings("default", category=PytestBenchmarkWarning)
    # A run that meets this folder only while it collects (`pytest .`) has parsed no such options.
    name = str(config.getoption("--results", default="local"))
    if Path(name).name != name:
        raise pytest.UsageError(
            f"--results expects a file name without folders, as cpu-2core.json, got {name!r}"
        )
    device = torch.device(str(config.getoption("--device", default=DEFAULT_DEVICE)))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no GPU; leave the option out")
    config.stash[MEASUREMENTS] = Measurements(device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "provider" not in metafunc.fixturenames:
        return
    on_gpu = metafunc.config.stash[MEASUREMENTS].device.type == "cuda"
    if on_gpu:
        cases = all_cases(GPU_DTYPES)
    elif metafunc.config.getoption("--full", default=False):
        cases = [*default_cpu_cases(), *all_cases(CPU_DTYPES)]
        cases = list(dict.fromkeys(cases))
    else:
        cases = default_cpu_cases()
    metafunc.parametrize("case", cases, ids=lambda case: case.name)
    metafunc.parametrize("pass_name", COMPARED_PASSES)
    # No case here has a softmax, without which this one is kpnops itself.
    names = [provider.name for provider in PROVIDERS if provider.name != UNFUSED]
    metafunc.parametrize("provider", names)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    measurements = session.config.stash[MEASUREMENTS]
    if not any(row.milliseconds is not None for row in measurements.rows):
        return
    from bench.plot import plots

    results = measurements.results()
    stem = str(session.config.getoption("--results", default="local")).removesuffix(".json")
    table = RESULTS_FOLDER / f"{stem}.json"
    save(results, table)
    measurements.files = [table, *plots(results, table)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from bench.report import terminal_report

    measurements = terminalreporter.config.stash[MEASUREMENTS]
    if not measurements.rows:
        return
    terminalreporter.section("kpnops benchmarks")
    terminalreporter.write_line(terminal_report(measurements.results()))
    for path in measurements.files:
        terminalreporter.write_line(f"wrote {path}")
