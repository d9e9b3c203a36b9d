"""Reconstruction: cases, photos, both providers, wrong results, rates."""

import builtins

import pytest
import torch

from bench.any_case import case_from_json, case_from_request, case_to_json, case_to_request
from bench.measure import measure_group
from bench.oracle import WrongResultError
from bench.photo_cases import (
    RECONSTRUCTION,
    PhotoCase,
    cpu_photo_cases,
    gpu_photo_cases,
    make_photo_tensors,
)
from bench.photo_operations import FILES, INFER, PHOTO_PROVIDERS, photo_checker
from bench.providers import skip_reason
from bench.report import terminal_report
from bench.report_head import PHOTO_HEADINGS, head_sections
from bench.results import MEASURED
from bench.step_cases import StepCase
from tests.bench.rows import CASE as FILTER_CASE
from tests.bench.rows import failed, measured, run

CPU = torch.device("cpu")
CASE = PhotoCase(2, 24, 40)


def test_the_sizes_are_those_asked_for():
    assert {round(case.megapixels) for case in gpu_photo_cases()} == {1, 4, 12, 36, 50}
    assert [round(case.megapixels, 1) for case in cpu_photo_cases(full=False)] == [0.3, 1.0]
    assert len(cpu_photo_cases(full=True)) > len(cpu_photo_cases(full=False))
    assert CASE.name == "2x3x24x40-K5-dkpn-uint8"
    assert CASE.title == "2 photos of 40×24 (0.00096 MP)"
    assert PhotoCase(1, 3000, 4000).title == "a photo of 4000×3000 (12 MP)"


def test_photos_are_partly_clipped():
    (photos,) = make_photo_tensors(PhotoCase(1, 64, 64), CPU)
    assert photos.dtype == torch.uint8
    assert 0.02 < (photos == 255).float().mean() < 0.5


def test_photos_in_memory_and_in_files_are_measured():
    groups = measure_group(PHOTO_PROVIDERS, CASE, RECONSTRUCTION, CPU, seconds=0.001)
    assert list(groups) == [INFER, FILES]
    for measurement in groups.values():
        row = measurement.row
        assert row.status == MEASURED, row
        assert row.megapixels_per_second == pytest.approx(1e-3 * CASE.pixels / row.milliseconds)
        assert row.error is not None
        assert row.error <= 1
        assert row.minimal_bytes is row.memory_beyond_results is None


def test_files_go_with_the_calls(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (call,) = PHOTO_PROVIDERS[1].make_calls(CASE, RECONSTRUCTION, [make_photo_tensors(CASE, CPU)])
    call()
    names = sorted(path.name for path in tmp_path.glob("*/*"))
    assert names == ["0.exr", "0.png", "1.exr", "1.png"]
    del call
    assert list(tmp_path.iterdir()) == []


def test_wrong_results_are_refused():
    tensors = make_photo_tensors(CASE, CPU)
    check = photo_checker(CASE, tensors)
    provider = PHOTO_PROVIDERS[0]
    (call,) = provider.make_calls(CASE, RECONSTRUCTION, [tensors])
    (result,) = call()
    assert check(provider, (result,)) <= 1
    with pytest.raises(WrongResultError, match="error's norm is"):
        check(provider, (result * (1 + 1e-3),))
    shifted = result.roll(1, dims=3)
    with pytest.raises(WrongResultError, match="error's norm is"):
        check(provider, (shifted,))
    result[0, 0, 0, 0] = float("nan")
    with pytest.raises(WrongResultError, match="NaN"):
        check(provider, (result,))


def test_a_machine_without_the_codecs_is_told(monkeypatch):
    def without(name, *arguments, **options):
        if name == "OpenEXR":
            raise ModuleNotFoundError("No module named 'OpenEXR'", name="OpenEXR")
        return imports(name, *arguments, **options)

    imports = builtins.__import__
    monkeypatch.setattr("importlib.import_module", without)
    reasons = [skip_reason(it, CASE, RECONSTRUCTION, CPU, 2**60) for it in PHOTO_PROVIDERS]
    assert reasons == [None, "needs the package OpenEXR, which is not installed"]


def test_a_case_is_told_and_read_back():
    assert case_from_request(case_to_request(CASE)) == CASE
    assert case_from_json(case_to_json(CASE), CASE.dtype, "row") == CASE
    step = StepCase(2, 24, 40, 5)
    assert case_from_json(case_to_json(step), step.dtype, "row") == step
    other = case_to_json(CASE) | {"kernel_size": 9}
    with pytest.raises(ValueError, match="kernel_size: expected 5"):
        case_from_json(other, CASE.dtype, "row")


def test_tables_show_megapixels_per_second():
    case = PhotoCase(1, 1000, 2000)
    rows = [
        measured(INFER, 500.0, case, RECONSTRUCTION, peak_mebibytes=1500.0, error=0.25),
        measured(FILES, 800.0, case, RECONSTRUCTION),
    ]
    assert rows[0].megapixels_per_second == 4.0
    assert rows[0].peak_mebibytes_per_megapixel == 750.0
    batch = measured(INFER, 500.0, PhotoCase(3, 1000, 2000), peak_mebibytes=1500.0)
    assert (batch.megapixels_per_second, batch.peak_mebibytes_per_megapixel) == (12.0, 750.0)
    assert measured(case=FILTER_CASE).megapixels_per_second is None
    assert measured(case=FILTER_CASE).peak_mebibytes_per_megapixel is None
    lines = head_sections(rows)
    assert (
        "| a photo of 2000×1000 (2 MP) | 4.000 | 500 ms | 450 ms … 600 ms | 750 | 2.500 | 0.25 "
        "| abc1234 |"
    ) in lines
    assert {line.count("|") for line in lines if line.startswith("|")} == {len(PHOTO_HEADINGS) + 1}
    alone = head_sections([rows[0], failed(FILES, "out of memory", case)])
    assert any("| 4.000 | 500 ms" in line for line in alone)
    assert "  4 MP/s" in terminal_report(run(rows))
