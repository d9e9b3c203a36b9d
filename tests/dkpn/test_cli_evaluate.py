import csv
import errno

import numpy as np
import pytest
import torch

from dkpn import DKPN, DKPNConfig, cli
from dkpn.checkpoint import save_weights
from dkpn.columns import COLUMNS
from dkpn.commands.evaluate import add_arguments
from dkpn.scenes import generate_scenes

pytest.importorskip("OpenEXR", reason="the command reads and writes EXR files")

from dkpn.hdr_io import read_hdr, write_hdr

TINY = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
)
NAMES = ("scene0__a", "scene0__b", "scene1__a")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    return save_weights(tmp_path_factory.mktemp("weights"), DKPN(TINY)).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hdr")
    for name, scene in zip(NAMES, generate_scenes(3, 48), strict=True):
        write_hdr(folder / f"{name}.exr", scene)
    return folder


@pytest.fixture
def other(data, tmp_path):
    """Another method's results: the truth, bent."""
    folder = tmp_path / "other"
    folder.mkdir()
    for name in NAMES:
        write_hdr(folder / f"{name}.exr", read_hdr(data / f"{name}.exr") ** np.float32(1.2))
    return folder


def run(*words):
    return cli.main(["evaluate", *(str(word) for word in words)])


def rows_of(out):
    with (out / "per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_networks_rows_and_the_references(data, weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--data", data, "--weights", weights, "--out", out) == 0
    table = capsys.readouterr().out
    assert (out / "table.md").read_text() == table
    methods = ["LDR", "camera oracle", "preliminary only", "DKPN"]
    rows = rows_of(out)
    assert [row["method"] for row in rows] == methods * 3
    for method in methods:
        assert f"| {method} " in table
    assert "| DKPN - preliminary only " in table
    assert "3 images of 2 scenes" in table
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_own_pairs_and_saved_results_make_a_table_without_a_network(data, other, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    by_protocol = tmp_path / "by_protocol"
    words = ("--no-network", "--results", f"other={other}")
    assert run("--data", data, *words, "--save-inputs", photos, "--out", by_protocol) == 0
    assert run("--data", data, "--inputs", photos, *words, "--out", out) == 0
    rows = rows_of(out)
    assert [row["method"] for row in rows] == ["LDR", "other"] * 3
    assert [row["image"] for row in rows[::2]] == list(NAMES)
    assert {row["curve"] + row["jpeg_quality"] for row in rows} == {""}
    assert "no camera oracle row" in (out / "table.md").read_text()
    # The fitted clip level costs little: below the 3.5 dB that a viewer may not see.
    known = [row for row in rows_of(by_protocol) if row["method"] != "camera oracle"]
    for row, reference in zip(rows, known, strict=True):
        assert float(row["truth_scale"]) > 0
        assert float(row["gain"]) == pytest.approx(float(reference["gain"]), abs=1.0)


def test_the_network_stands_beside_saved_results(data, other, weights, tmp_path):
    out = tmp_path / "out"
    words = ("--results", f"other={other}", "--results", f"again={other}", "--weights", weights)
    assert run("--data", data, *words, "--out", out) == 0
    methods = ["LDR", "camera oracle", "preliminary only", "DKPN", "other", "again"]
    rows = rows_of(out)
    assert [row["method"] for row in rows[:6]] == methods
    assert rows[4]["gain"] == rows[5]["gain"]
    assert rows[4]["seconds"] == ""


def test_columns_are_chosen(data, other, tmp_path, capsys):
    words = ("--no-network", "--data", data, "--results", f"other={other}")
    assert run(*words, "--out", tmp_path / "out", "--metrics", "ssim_crf", "gain") == 0
    header = capsys.readouterr().out.split("| method")[1].splitlines()[0]
    assert [cell.strip() for cell in header.split("|")[1:3]] == ["SSIM +CRF", "gain"]
    assert {"gain", "crf", "clipped", "clipped_crf", "ssim_crf"} <= rows_of(tmp_path / "out")[
        0
    ].keys()
    assert run(*words, "--metrics", "psnr") == 2
    assert "--metrics: expected some of gain, crf" in capsys.readouterr().err


def test_the_help_names_all_columns(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COLUMNS)
    assert add_arguments.__doc__


@pytest.mark.parametrize("name", [name for name, column in COLUMNS.items() if column.package])
def test_columns_whose_package_is_missing_exit_2(data, other, monkeypatch, capsys, name):
    monkeypatch.setattr("dkpn.columns.find_spec", lambda name: None)
    assert (
        run("--no-network", "--data", data, "--results", f"other={other}", "--metrics", name) == 2
    )
    assert "pip install" in capsys.readouterr().err


# --- wrong use: 2, before anything is measured --------------------------------------------------


def test_folders_that_cannot_be_used(data, weights, tmp_path):
    words = ("--weights", weights)
    assert run("--data", tmp_path / "absent", *words) == 2
    assert run("--data", tmp_path, *words) == 2
    (tmp_path / "file").write_text("")
    assert run("--data", data, *words, "--out", tmp_path / "file") == 2
    assert run("--data", data, *words, "--save-inputs", tmp_path / "file") == 2


def test_without_a_network_there_have_to_be_results(data, other, weights, capsys):
    assert run("--data", data, "--no-network") == 2
    assert "give --results" in capsys.readouterr().err
    words = ("--results", f"other={other}", "--weights", weights)
    assert run("--data", data, "--no-network", *words) == 2
    assert "leave one of them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("other", "expected NAME=DIR"),
        ("=other", "expected NAME=DIR"),
        ("other=", "expected NAME=DIR"),
        ("LDR={other}", "a row 'LDR' already"),
        ("DKPN={other}", "a row 'DKPN' already"),
        ("other={other}/no", "no such folder"),
    ],
)
def test_results_that_make_no_sense(data, other, capsys, word, message):
    assert run("--no-network", "--data", data, "--results", word.format(other=other)) == 2
    assert message in capsys.readouterr().err


def test_a_missing_result_is_named_before_anything_runs(data, other, tmp_path, capsys):
    (other / "scene1__a.exr").unlink()
    out = tmp_path / "out"
    assert run("--no-network", "--data", data, "--results", f"other={other}", "--out", out) == 2
    message = capsys.readouterr().err
    assert str(other / "scene1__a.exr") in message
    assert "every picture needs a result" in message
    assert not out.exists()


def test_a_missing_partner_is_named(data, other, tmp_path, capsys):
    photos = tmp_path / "photos"
    words = ("--no-network", "--results", f"other={other}")
    assert run("--data", data, *words, "--save-inputs", photos) == 0
    assert run("--data", data, "--inputs", photos, *words, "--save-inputs", photos) == 2
    assert "--save-inputs" in capsys.readouterr().err
    (photos / "scene0__b.jpg").unlink()
    assert run("--data", data, "--inputs", photos, *words) == 2
    message = capsys.readouterr().err
    assert "scene0__b.exr" in message
    assert "add the partner" in message
    assert run("--data", data, "--inputs", tmp_path / "no", *words) == 2


# --- a file that fails: 1 -----------------------------------------------------------------------


def test_an_image_that_cannot_be_read_is_named(weights, tmp_path, capsys):
    (tmp_path / "damaged.exr").write_bytes(b"no image")
    assert run("--data", tmp_path, "--weights", weights) == 1
    assert "damaged.exr" in capsys.readouterr().err


@pytest.mark.parametrize("problem", ["size", "nan", "damaged"])
def test_a_result_that_cannot_be_judged_is_named(data, other, tmp_path, capsys, problem):
    file = other / "scene0__b.exr"
    image = read_hdr(file)
    if problem == "size":
        write_hdr(file, image[:-1])
    elif problem == "nan":
        file.unlink()
        image[1, 2, 0] = np.nan
        np.save(file.with_suffix(".npy"), image)
    else:
        file.write_bytes(b"no image")
    out = tmp_path / "out"
    assert run("--no-network", "--data", data, "--results", f"other={other}", "--out", out) == 1
    assert str(file.with_suffix("")) in capsys.readouterr().err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("option", ["--out", "--save-inputs"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(
    data, tmp_path, monkeypatch, capsys, option
):
    monkeypatch.setattr("dkpn.evaluate.evaluate", lambda *_, **__: pytest.fail("worked first"))
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "out"
    assert (
        run("--data", data, "--no-network", "--save-inputs", tmp_path / "in", option, folder) == 2
    )
    message = capsys.readouterr().err
    assert f"{option} {folder}: cannot be made" in message
    assert "\n" not in message.strip()


def test_the_table_is_shown_where_it_cannot_be_written(data, other, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dkpn.report.Evaluation.write_csv", full)
    words = ("--no-network", "--results", f"other={other}", "--out", tmp_path / "out")
    assert run("--data", data, *words) == 1
    captured = capsys.readouterr()
    assert "| other " in captured.out
    assert "out: No space left on device" in captured.err


def test_inputs_for_another_method_need_no_network(data, tmp_path, capsys):
    photos = tmp_path / "photos"
    assert run("--data", data, "--no-network", "--save-inputs", photos) == 0
    assert len(list(photos.iterdir())) == len(NAMES)
    assert "| camera oracle " in capsys.readouterr().out
