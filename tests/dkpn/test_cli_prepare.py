import argparse

import numpy as np
import pytest

from dkpn import cli
from dkpn.commands.prepare import size_in_bytes
from dkpn.prepared import is_prepared, read_manifest
from dkpn.scenes import generate_scenes

pytest.importorskip("OpenEXR", reason="the sources are EXR files")

from dkpn.hdr_io import write_hdr

TOML = """
[model]
width = 4
pooled_width = 4
channel_multipliers = [1]
encoder_blocks = [1]
decoder_blocks = []
[data]
crop_size = 16
[train]
iterations = 2
batch_size = 2
"""


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, scene in enumerate(generate_scenes(3, 48)):
        write_hdr(folder / f"scene{index}.exr", scene)
    return folder


def run(*words):
    return cli.main([str(word) for word in words])


def test_a_set_is_made_trained_on_and_validated_on(photos, tmp_path, capsys):
    out, config = tmp_path / "set", tmp_path / "tiny.toml"
    config.write_text(TOML)
    assert run("prepare", photos, "--out", out, "--min-side", 16, "--min-stops", 0) == 0
    printed = capsys.readouterr()
    assert "3 pictures of 3 scenes, 0 of them panoramas" in printed.out
    assert "reading 3 pictures" in printed.err
    words = ("--config", config, "--data", out, "--val", out, "--out", tmp_path / "run")
    assert run("train", *words) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_options_reach_the_settings(photos, tmp_path):
    out = tmp_path / "set"
    words = ("--panorama", "no", "--max-side", 40, "--min-side", 16, "--min-stops", 0.5)
    more = ("--bits", 8, "--covered", "keep", "--max-size", "1MiB")
    assert run("prepare", photos, "--out", out, *words, *more) == 0
    settings = read_manifest(out)["settings"]
    assert settings == {
        "panorama": "no",
        "max_side": 40,
        "max_bytes": 2**20,
        "min_side": 16,
        "min_stops": 0.5,
        "bits": 8,
        "covered": "keep",
        "folders": [str(photos)],
    }


def test_broken_files_exit_1_and_refused_ones_0(photos, tmp_path, capsys):
    words = ("--min-side", 16, "--min-stops", 0)
    write_hdr(photos / "black.exr", np.zeros((48, 48, 3), np.float32))
    assert run("prepare", photos, "--out", tmp_path / "a", *words) == 0
    assert "refused: 1\n  black.exr: black" in capsys.readouterr().out
    (photos / "damaged.exr").write_bytes(b"no picture")
    assert run("prepare", photos, "--out", tmp_path / "b", *words) == 1
    assert "damaged.exr: cannot be read" in capsys.readouterr().out
    assert is_prepared(tmp_path / "b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bits", 11), "bits: expected 1 to 10, got 11"),
        (("--max-size", "45 bananas"), "expected a number and a unit"),
        (("--max-size", "1KiB", "--min-side", 48), "max_bytes: the set has"),
        (("--min-side", 64), "none of 3 pictures can be used"),
    ],
)
def test_wrong_use_exits_2_and_writes_nothing(photos, tmp_path, capsys, words, message):
    options = ("--min-stops", 0, "--min-side", 16, *words)
    assert run("prepare", photos, "--out", tmp_path / "set", *options) == 2
    assert message in capsys.readouterr().err
    assert run("prepare", tmp_path / "absent", "--out", tmp_path / "set") == 2
    assert "no such folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_an_existing_folder_stays(photos, tmp_path, capsys):
    words = ("--min-side", 16, "--min-stops", 0)
    assert run("prepare", photos, "--out", photos, "--overwrite", *words) == 2
    assert "neither a prepared set nor an empty folder" in capsys.readouterr().err
    assert len(list(photos.iterdir())) == 3


def test_clamped_and_left_out_are_told(photos, tmp_path, capsys):
    sun = generate_scenes(1, 48)[0]
    sun[0, 0] = 1e9
    write_hdr(photos / "sun.exr", sun)
    half = generate_scenes(1, 48, seed=8)[0]
    write_hdr(photos / "scene1__all.exr", np.concatenate((half, half[:, ::-1]), axis=1))
    words = ("--min-side", 16, "--min-stops", 0, "--covered", "drop")
    assert run("prepare", photos, "--out", tmp_path / "set", *words) == 0
    printed = capsys.readouterr().out
    assert "4 pictures of 4 scenes, 1 of them panoramas" in printed
    assert "clamped at 65504 times the median: 1 pixels in 1" in printed
    assert "left out, since their scene has a panorama: 1 photos" in printed


@pytest.mark.parametrize(
    ("text", "size"),
    [("45MiB", 45 * 2**20), ("1.5 GB", 1_500_000_000), ("70000", 70000), ("2 kib", 2048)],
)
def test_sizes(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "45 M", "1e3", "nan"])
def test_sizes_that_make_no_sense(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number and a unit"):
        size_in_bytes(text)
