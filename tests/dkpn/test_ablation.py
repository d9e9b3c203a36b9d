import csv
import json

import pytest

from dkpn import ablation
from dkpn.checkpoint import read_json
from dkpn.run_config import CONFIGS
from dkpn.scenes import generate_scenes

pytest.importorskip("OpenEXR", reason="the images are EXR files")

from dkpn.hdr_io import write_hdr

BASE = """
[model]
width = 4
pooled_width = 4
channel_multipliers = [1]
encoder_blocks = [1]
decoder_blocks = []
[data]
crop_size = 16
[train]
batch_size = 1
validation_images = 1
"""


@pytest.fixture
def words(tmp_path):
    """A command that takes seconds."""
    for name in ("data", "val"):
        (tmp_path / name).mkdir()
        for index, scene in enumerate(generate_scenes(2, 48, seed=len(name))):
            write_hdr(tmp_path / name / f"{name}{index}.exr", scene)
    base = tmp_path / "base.toml"
    base.write_text(BASE)
    (tmp_path / "wide.toml").write_text("[model]\nwidth = 6\n")
    options = {
        "--data": tmp_path / "data",
        "--val": tmp_path / "val",
        "--out": tmp_path / "out",
        "--base": base,
        "--iterations": 2,
    }
    return [str(word) for option in options.items() for word in option]


def test_configurations_become_rows_of_one_table(words, tmp_path, capsys):
    wide = str(tmp_path / "wide.toml")
    assert ablation.main([*words, "kernel-3", wide]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line[:1] == "|"]
    assert lines == ["configuration", "---", "LDR", "camera oracle", "kernel-3", "wide"]
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["configuration"] for row in rows] == ["kernel-3", "wide"]
    assert int(rows[0]["parameters"]) < int(rows[1]["parameters"])
    assert {row["iterations"] for row in rows} == {"2"}
    # What the evaluation measured is what the table says.
    folder = tmp_path / "out" / "wide"
    with (folder / "per_image.csv").open(newline="") as file:
        gains = {row["image"]: row for row in csv.DictReader(file) if row["method"] == "wide"}
    mean = sum(float(row["gain"]) for row in gains.values()) / len(gains)
    assert float(rows[1]["gain_mean"]) == pytest.approx(mean)
    assert len(gains) == 2
    config = read_json(folder / "ablation.json")["config"]
    assert (config["model"]["width"], config["data"]["crop_size"]) == (6, 16)


def test_what_is_done_is_not_done_again_and_other_choices_are_refused(words, tmp_path, capsys):
    assert ablation.main([*words, "default"]) == 0
    result = tmp_path / "out" / "default" / "ablation.json"
    # Marked, to see that it is kept; a second configuration is added to the table.
    values = json.loads(result.read_text()) | {"parameters": 12345}
    result.write_text(json.dumps(values))
    assert ablation.main([*words, "default", "kernel-3"]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| default | 12,345 |" in table
    assert "| kernel-3 |" in table
    capsys.readouterr()
    assert ablation.main([*words, "--iterations", "3", "default"]) == 1
    assert "iterations: 2 and 3" in capsys.readouterr().err


def test_a_configuration_that_fails_does_not_stop_the_others(words, tmp_path, capsys):
    wild = tmp_path / "wild.toml"
    wild.write_text("[train]\nlearning_rate = 1e30\n")
    assert ablation.main([*words, str(wild), "kernel-3"]) == 1
    assert "wild: the " in capsys.readouterr().err
    table = (tmp_path / "out" / "table.md").read_text()
    assert "kernel-3" in table
    assert "wild" not in table


def test_without_a_budget_or_images_nothing_is_begun(words, tmp_path, capsys):
    assert ablation.main([*words[:-2], "default"]) == 2
    assert "--minutes or --iterations" in capsys.readouterr().err
    assert ablation.main([*words, "--val", str(tmp_path / "absent"), "default"]) == 2
    assert ablation.main([*words, "absent"]) == 2
    assert not (tmp_path / "out").exists()


def test_the_rows_of_the_issue_are_there():
    names = {path.stem for path in CONFIGS.glob("*.toml")}
    assert names == {
        "default",
        "feature",
        "kernel-3",
        "kernel-9",
        "mix",
        "no-guidance",
        "no-softmax",
        "paper",
        "per-image",
        "preliminary",
        "undecoupled",
    }
