import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dkpn import cli, training_data
from dkpn.checkpoint import latest_checkpoint
from tests.dkpn.training_runs import TOML, end, rows, start_command, write_scenes


@pytest.fixture(scope="module")
def hdr_folder(tmp_path_factory):
    pytest.importorskip("OpenEXR", reason="the images are EXR files")
    return write_scenes(tmp_path_factory.mktemp("hdr"))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def endless(tmp_path):
    """A run that ends when it is stopped."""
    path = tmp_path / "endless.toml"
    path.write_text(
        TOML.replace("iterations = 4", "iterations = 1000000")
        .replace("checkpoint_every = 2", "checkpoint_every = 10")
        .replace("validate_every = 2", "validate_every = 1000000")
    )
    return path


def run(*words):
    return cli.main([str(word) for word in words])


def test_train_without_data_uses_generated_scenes(config, tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, "GENERATED_SCENES", 2)
    monkeypatch.setattr(training_data, "GENERATED_VALIDATION", 1)
    monkeypatch.setattr(training_data, "GENERATED_SIDE", 64)
    words = ("--batch-size", 1, "--crop-size", 24, "--learning-rate", 1e-4, "--seed", 3)
    assert run("train", "--config", config, "--out", tmp_path / "run", *words) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
    values = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (values["train"]["batch_size"], values["data"]["crop_size"]) == (1, 24)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--val", "x"), "--val without --data"),
        (("--data", "absent"), "absent"),
        (("--config", "absent.toml"), "absent.toml"),
        (("--iterations", "0"), "iterations: expected more than 0"),
        (("--resume", "absent"), "absent: no checkpoint"),
        (("--device", "toaster"), "toaster"),
    ],
)
def test_wrong_training_arguments_exit_2_and_write_nothing(words, message, tmp_path, capsys):
    assert run("train", *words, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_read_are_skipped_and_named(hdr_folder, config, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in hdr_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    whole = (folder / "scene0.exr").read_bytes()
    (folder / "cut.exr").write_bytes(whole[: len(whole) // 2])
    (folder / "text.hdr").write_text("no picture")
    words = ("--data", folder, "--val", hdr_folder, "--config", config)
    assert run("train", *words, "--out", tmp_path / "run") == 0
    message = capsys.readouterr().err
    assert "skipped 2 of 5 images" in message
    assert "cut.exr" in message
    assert "text.hdr" in message
    assert "3 scenes" in json.loads((tmp_path / "run" / "run.json").read_text())["images"]


def test_a_training_that_fails_exits_1(hdr_folder, config, tmp_path, capsys):
    words = ("--data", hdr_folder, "--config", config, "--out", tmp_path / "run")
    assert run("train", *words, "--learning-rate", 1e30) == 1
    assert "lower learning_rate" in capsys.readouterr().err


def wait_for_checkpoint(out, process_is_alive):
    deadline = time.monotonic() + 120
    while latest_checkpoint(out / "checkpoints") is None:
        assert process_is_alive(), "the training ended by itself"
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_shows_in_the_exit_code(
    hdr_folder, endless, tmp_path, number
):
    out = tmp_path / "run"
    process = start_command("train", "--data", hdr_folder, "--config", endless, "--out", out)
    try:
        wait_for_checkpoint(out, process.is_alive)
        os.kill(process.pid, number)
        process.join(120)
    finally:
        end(process)
    assert process.exitcode == 128 + number
    latest = latest_checkpoint(out / "checkpoints")
    assert latest is not None
    # All that was done is saved: the last row of the metrics is the checkpoint's.
    assert rows(out, "train")[-1]["iteration"] == str(int(latest.name))


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_torchrun_passes_a_signal_on_and_the_run_goes_on(hdr_folder, endless, tmp_path, to_all):
    """torchrun's own exit code is 1; a signal to its whole group reaches each process twice."""
    out = tmp_path / "run"
    code = "import sys; from dkpn.cli import main; raise SystemExit(main(sys.argv[1:]))"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--no-python", sys.executable, "-c", code]
    words = ["train", "--data", str(hdr_folder), "--config", str(endless), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        before = latest_checkpoint(out / "checkpoints")
        process = subprocess.Popen(
            [*torchrun, *words, "--resume", "auto"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment,
        )
        try:
            deadline = time.monotonic() + 240
            while latest_checkpoint(out / "checkpoints") == before:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline, "no checkpoint within four minutes"
                time.sleep(0.1)
            (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
            output, _ = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        assert "stopped; go on with" in output
        iterations = [int(row["iteration"]) for row in rows(out, "train")]
        assert iterations == sorted(set(iterations))
        latest = latest_checkpoint(out / "checkpoints")
        assert latest is not None
        assert iterations[-1] == int(latest.name)
