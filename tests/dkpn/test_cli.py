import builtins
import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from dkpn import DKPN, DKPNConfig, cli
from dkpn.checkpoint import latest_checkpoint, save_weights
from dkpn.scenes import generate_scenes

pytest.importorskip("OpenEXR", reason="the command reads and writes EXR files")

from dkpn.hdr_io import read_hdr, read_photo, write_hdr, write_png

TINY = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
)
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
iterations = 4
batch_size = 2
validate_every = 2
checkpoint_every = 2
workers = 0
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    return save_weights(tmp_path_factory.mktemp("weights"), DKPN(TINY)).parent


@pytest.fixture(scope="module")
def hdr_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hdr")
    for index, scene in enumerate(generate_scenes(3, 48)):
        write_hdr(folder / f"scene{index}.exr", scene)
    return folder


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
    assert read_photo(results / "bird_preview.png").shape == (9, 7, 3)

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
        assert len(list(csv.DictReader(file))) == 9
    assert (judged / "table.md").read_text() == table


def test_train_without_data_uses_generated_scenes(tmp_path, monkeypatch):
    from dkpn import train

    monkeypatch.setattr(train, "GENERATED_SCENES", 2)
    monkeypatch.setattr(train, "GENERATED_VALIDATION", 1)
    monkeypatch.setattr(train, "GENERATED_SIDE", 64)
    config = tmp_path / "tiny.toml"
    config.write_text(TOML)
    words = ("--batch-size", 1, "--crop-size", 24, "--learning-rate", 1e-4, "--seed", 3)
    assert run("train", "--config", config, "--out", tmp_path / "run", *words) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--val", "x"), "--val without --data"),
        (("train", "--data", "absent"), "absent"),
        (("train", "--config", "absent.toml"), "absent.toml"),
        (("train", "--iterations", "0"), "iterations: expected more than 0"),
        (("train", "--resume", "absent"), "absent: no checkpoint"),
        (("train", "--device", "toaster"), "toaster"),
    ],
)
def test_wrong_training_arguments_exit_2_and_write_nothing(words, message, tmp_path, capsys):
    assert run(*words, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [".exr", ".hdr"])
def test_a_file_is_written_where_it_is_named(photo, weights, tmp_path, suffix):
    out = tmp_path / f"result{suffix}"
    assert run("reconstruct", photo, "-o", out, "--weights", weights) == 0
    assert names(tmp_path) == ["photos", f"result{suffix}", "result_preview.png"]
    values = read_hdr(out)
    assert values.shape == (9, 7, 3)
    assert np.isfinite(values).all()


def test_existing_results_stay_unless_overwrite_is_given(photo, weights, tmp_path, capsys):
    out = tmp_path / "result.exr"
    out.write_text("precious")
    assert run("reconstruct", photo, "-o", out, "--weights", weights) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert run("reconstruct", photo, "-o", out, "--weights", weights, "--overwrite") == 0
    assert read_hdr(out).shape == (9, 7, 3)


@pytest.mark.parametrize(
    ("output", "message"),
    [("result.tiff", ".exr or .hdr"), ("absent/result.exr", "does not exist")],
)
def test_wrong_outputs_exit_2_and_write_nothing(photo, weights, tmp_path, output, message, capsys):
    assert run("reconstruct", photo, "-o", tmp_path / output, "--weights", weights) == 2
    assert message in capsys.readouterr().err
    assert names(tmp_path) == ["photos"]


def test_missing_weights_say_how_to_train(photo, tmp_path, capsys):
    assert run("reconstruct", photo, "-o", tmp_path / "out") == 2
    assert "dkpn train --data" in capsys.readouterr().err
    assert run("reconstruct", photo, "-o", tmp_path / "out", "--weights", tmp_path / "no") == 2
    assert "no such file" in capsys.readouterr().err
    assert names(tmp_path) == ["photos"]


def test_one_bad_photo_does_not_stop_the_others(photo, weights, tmp_path, capsys):
    bad = photo.with_name("broken.jpg")
    bad.write_bytes(photo.read_bytes()[:40])
    missing = photo.with_name("missing.jpg")
    out = tmp_path / "out"
    assert run("reconstruct", bad, missing, photo, "-o", out, "--weights", weights) == 1
    assert names(out) == ["bird.exr", "bird_preview.png"]
    messages = capsys.readouterr().err
    assert "broken.jpg" in messages
    assert "missing.jpg" in messages
    assert "2 of 3 photos failed" in messages


def test_evaluate_tells_wrong_use_from_a_bad_file(hdr_folder, weights, tmp_path, capsys):
    words = ("--weights", weights)
    assert run("evaluate", "--data", tmp_path / "absent", *words) == 2
    assert run("evaluate", "--data", tmp_path, *words) == 2
    (tmp_path / "file").write_text("")
    assert run("evaluate", "--data", hdr_folder, *words, "--out", tmp_path / "file") == 2
    (tmp_path / "damaged.exr").write_bytes(b"no image")
    capsys.readouterr()
    assert run("evaluate", "--data", tmp_path, *words) == 1
    assert "damaged.exr" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("retrain",), ("reconstruct", "a.jpg"), ("train", "--x")])
def test_words_that_make_no_sense_exit_2(words):
    assert run(*words) == 2


@pytest.mark.parametrize("command", ["train", "reconstruct", "evaluate"])
def test_help_names_the_units_and_exits_0(command, capsys):
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    unit = {"train": "PIXELS", "reconstruct": "203 cd/m²", "evaluate": "dB"}[command]
    assert unit in text


@pytest.mark.parametrize("module", list(cli.EXTRA_PACKAGES))
def test_without_the_extra_the_command_says_what_to_install(module, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == module else find_spec(name))
    assert cli.entry_point() == 2
    message = capsys.readouterr().err
    assert cli.EXTRA_PACKAGES[module] in message
    assert 'pip install "kpnops[dkpn]"' in message


def test_the_command_loads_without_its_extra(monkeypatch):
    """What entry_point() needs before it can complain must not import what may be missing."""
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
    assert module.entry_point() == 2


def test_entry_point_runs_the_command_when_all_is_there(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dkpn", "--help"])
    assert cli.entry_point() == 0
    assert "COMMAND" in capsys.readouterr().out


def test_sigterm_to_all_processes_saves_a_checkpoint_and_exits_0(hdr_folder, tmp_path):
    """A terminal's Ctrl-C and a cluster's SIGTERM reach the workers as well."""
    config = tmp_path / "tiny.toml"
    config.write_text(
        TOML.replace("workers = 0", "workers = 1")
        .replace("iterations = 4", "iterations = 1000000")
        .replace("checkpoint_every = 2", "checkpoint_every = 1")
        .replace("validate_every = 2", "validate_every = 1000000")
    )
    out = tmp_path / "run"
    words = ["train", "--data", str(hdr_folder), "--config", str(config), "--out", str(out)]
    code = f"from dkpn.cli import main; raise SystemExit(main({words!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        deadline = time.monotonic() + 120
        while latest_checkpoint(out / "checkpoints") is None:
            assert process.poll() is None, "the training ended by itself"
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0
    assert "stopped" in output
    latest = latest_checkpoint(out / "checkpoints")
    assert latest is not None
    assert latest.name == f"{json.loads((latest / 'state.json').read_text())['iteration']:08d}"
