"""How `pytest bench/` runs: options, the choice of cases, the report at the end."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.logger import PytestBenchmarkWarning

from bench.any_case import AnyCase
from bench.measure import Measurement
from bench.replay import ReplayClock
from bench.results import FAILED, SKIPPED, save
from bench.session import MEASUREMENTS, Measurements, check_mergeable, merged_results

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
    group.addoption(
        "--merge",
        action="store_true",
        help="keep the rows of that file that are not measured again",
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
    if config.getoption("--merge", default=False):
        try:
            check_mergeable(_results_file(config), device)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
    config.stash[MEASUREMENTS] = Measurements(device)


def _results_file(config: pytest.Config) -> Path:
    stem = str(config.getoption("--results", default="local")).removesuffix(".json")
    return RESULTS_FOLDER / f"{stem}.json"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "provider" not in metafunc.fixturenames:
        return
    device = metafunc.config.stash[MEASUREMENTS].device.type
    # Each module says what it compares.
    full = bool(metafunc.config.getoption("--full", default=False))
    module: Any = metafunc.module
    cases, pass_names, names = module.chosen(device, full)
    metafunc.parametrize("case", cases, ids=lambda case: case.name)
    metafunc.parametrize("pass_name", pass_names)
    metafunc.parametrize("provider", names)


@pytest.fixture
def measurement(
    request: pytest.FixtureRequest, case: AnyCase, pass_name: str, provider: str
) -> Measurement:
    """Measure the whole group with its first row, and hand pytest-benchmark this row's durations.

    pytest-benchmark times one test after the other; a slow spell of the machine would then fall on
    one provider. So all take turns within one loop, and each row is told its own durations: of the
    wall clock on a CPU, of device events on a GPU.
    """
    config = request.config
    selected = {
        str(item.callspec.params["provider"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
        and item.callspec.params.get("case") == case
        and item.callspec.params.get("pass_name") == pass_name
    }
    disabled = config.getoption("benchmark_disable") and not config.getoption("benchmark_enable")
    timed = not disabled and not hasattr(config, "workerinput")
    measured = config.stash[MEASUREMENTS].of(case, pass_name, provider, selected, timed)
    if measured.row.status == SKIPPED:
        pytest.skip(measured.row.reason)
    if measured.row.status == FAILED:
        pytest.fail(measured.row.reason, pytrace=False)
    request.node.add_marker(
        pytest.mark.benchmark(timer=ReplayClock(measured.durations), group=measured.row.group)
    )
    return measured


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    measurements = session.config.stash[MEASUREMENTS]
    if not any(row.milliseconds is not None for row in measurements.rows):
        return
    from bench.plot import plots

    results = measurements.results()
    table = _results_file(session.config)
    if session.config.getoption("--merge", default=False):
        results = merged_results(results, table)
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
