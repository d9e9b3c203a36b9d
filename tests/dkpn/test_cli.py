import builtins
import csv
import importlib.util
import sys

import numpy as np
import pytest

from dkpn import cli

pytest.importorskip("OpenEXR", reason="the command reads and writes EXR files")

from dkpn.hdr_io import read_hdr, write_png
from dkpn.photos import read_photo
from tests.dkpn.training_runs import TOML, write_scenes


@pytest.fixture(scope="module")
def hdr_folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("hdr"))


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "bird.png"
    path.parent.mkdir()
    write_png(path, np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return path


def run(*words):
    return cli.main([str(word) for word in words])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_train_resume_reconstruct_evaluate_is_one_way(hdr_folder, photo, tmp_path, capsys):
    config = tmp_path / "tiny.toml"
    config.write_text(TOML)
    out = tmp_path / "run"
    assert run("train", "--data", hdr_folder, "--config", config, "--out", out) == 0
    assert (out / "config.toml").read_text() == TOML
    assert run("train", "--data", hdr_folder, "--config", config, "--out", out) == 2
    assert "--resume auto" in capsys.readouterr().err
    again = ("train", "--data", hdr_folder, "--config", config, "--out", out, "--resume", "auto")
    assert run(*again) == 0
    assert run(*again, "--iterations", 6) == 2
    assert "train.iterations: 4 and 6" in capsys.readouterr().err

    results = tmp_path / "results"
    assert run("reconstruct", photo, "-o", results, "--weights", out) == 0
    assert names(results) == ["bird.exr", "bird_preview.png"]
    assert read_hdr(results / "bird.exr").shape == (9, 7, 3)
    assert read_photo(results / "bird_preview.png").pixels.shape == (9, 7, 3)

    capsys.readouterr()
    inputs, judged = tmp_path / "inputs", tmp_path / "judged"
    words = ("--weights", out, "--save-inputs", inputs, "--out", judged)
    assert run("evaluate", "--data", hdr_folder, *words) == 0
    table = capsys.readouterr().out
    for name in ("LDR", "camera oracle", "DKPN"):
        assert f"| {name} " in table
    assert names(inputs) == ["scene0.jpg", "scene1.jpg", "scene2.jpg"]
    assert names(judged) == ["per_image.csv", "table.md"]
    with (judged / "per_image.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12
    assert (judged / "table.md").read_text() == table


@pytest.mark.parametrize("words", [(), ("retrain",), ("reconstruct", "a.jpg"), ("train", "--x")])
def test_words_that_make_no_sense_exit_2(words):
    assert run(*words) == 2


@pytest.mark.parametrize("command", ["train", "reconstruct", "evaluate"])
def test_help_names_the_units_and_exits_0(command, capsys):
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    unit = {"train": "PIXELS", "reconstruct": "203 cd/m²", "evaluate": "dB"}[command]
    assert unit in text


COMMANDS = {
    "prepare": ("prepare", "absent", "--out", "set"),
    "train": ("train", "--data", "absent"),
    "reconstruct": ("reconstruct", "absent.jpg", "-o", "absent/out"),
    "view": ("view", "absent.exr"),
    "evaluate": ("evaluate", "--data", "absent"),
    "export": ("export", "absent", "--size", "8x8"),
}


def without(module, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == module else find_spec(name))


@pytest.mark.parametrize("module", list(cli.EXTRA_PACKAGES))
@pytest.mark.parametrize("command", list(COMMANDS))
def test_only_the_commands_that_need_a_package_ask_for_it(command, module, monkeypatch, capsys):
    without(module, monkeypatch)
    code = run(*COMMANDS[command])
    message = capsys.readouterr().err
    assert code in (1, 2)
    asked = f'dkpn {command} needs {cli.EXTRA_PACKAGES[module]}: pip install "kpnops[dkpn]"'
    assert (asked in message) == (module in cli.NEEDED_PACKAGES[command])
    assert ("absent" in message) != (asked in message)
    assert code == 2 or asked not in message


def test_every_command_says_what_it_needs():
    assert cli.NEEDED_PACKAGES.keys() == COMMANDS.keys()
    assert {name for names in cli.NEEDED_PACKAGES.values() for name in names} == set(
        cli.EXTRA_PACKAGES
    )


def test_a_codec_that_a_file_needs_is_asked_for(hdr_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    for command in (("prepare", hdr_folder, "--out", tmp_path / "set"), ("train", "--data")):
        words = command if len(command) > 2 else (*command, hdr_folder, "--out", tmp_path / "run")
        assert run(*words) == 2
        message = capsys.readouterr().err
        assert "OpenEXR is needed for this file and is not installed" in message
        assert 'pip install "kpnops[dkpn]"' in message
    assert names(tmp_path) == []


def test_the_command_loads_without_its_extra(monkeypatch, capsys):
    """What it needs before it can complain must not import what may be missing."""
    blocked = set(cli.EXTRA_PACKAGES)
    true_import = builtins.__import__

    def refuse(name, *rest):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(name)
        return true_import(name, *rest)

    loaded = {name for name in sys.modules if name.split(".")[0] in {*blocked, "dkpn"}}
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    module = importlib.import_module("dkpn.cli")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert module.main(["--help"]) == 0
    assert module.main(list(COMMANDS["train"])) == 2
    assert "dkpn train needs safetensors, pillow, matplotlib, tqdm" in capsys.readouterr().err


def test_entry_point_runs_the_command_when_all_is_there(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dkpn", "--help"])
    assert cli.entry_point() == 0
    assert "COMMAND" in capsys.readouterr().out
