import dataclasses
from pathlib import Path

import pytest

from dkpn import DKPN
from dkpn.config import TrainConfig
from dkpn.run_config import CONFIGS, RunConfig, find_config, read_run_config


def test_configuration_file_fills_the_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[model]\nwidth = 8\n[train]\niterations = 10\nlearning_rate = 1\n")
    run = read_run_config(path)
    assert run.model.width == 8
    assert run.train == dataclasses.replace(TrainConfig(), iterations=10, learning_rate=1.0)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[modle]\n", ValueError, r"run\.toml.*modle.*known are model"),
        ("[model]\nwidht = 3\n", ValueError, r"run\.toml: model.*widht"),
        ("[train]\niterations = '3'\n", TypeError, r"train: iterations.*int"),
        ("model = 3\n", TypeError, r"model.*table"),
        ("[model\n", ValueError, r"run\.toml: not a TOML file"),
    ],
)
def test_wrong_configuration_files_say_where(tmp_path, text, error, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_run_config(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.toml.*default"):
        read_run_config(tmp_path / "absent.toml")


def test_shipped_configurations_are_found_by_name_behind_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(Path("paper")) == CONFIGS / "paper.toml"
    Path("paper").write_text("")
    assert find_config(Path("paper")) == Path("paper")


def test_the_shipped_default_is_the_default():
    assert read_run_config(Path("default")) == RunConfig()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_makes_a_network_of_its_own(path):
    run = read_run_config(path)
    # The limit, which an ablation that is compared with the default has to keep as well.
    parameters = sum(weight.numel() for weight in DKPN(run.model, head=run.train.head).parameters())
    assert parameters <= 5_000_000
    others = [read_run_config(other) for other in CONFIGS.glob("*.toml") if other != path]
    assert run not in others
