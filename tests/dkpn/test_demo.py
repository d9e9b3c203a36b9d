import dataclasses

import pytest
import torch

from dkpn import DKPN, DKPNConfig, demo
from dkpn.config import TrainConfig
from dkpn.run_config import RunConfig
from dkpn.training_pairs import DataConfig

pytest.importorskip("OpenEXR", reason="the demo writes an EXR file")

TINY = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
)
QUICK = RunConfig(
    model=TINY,
    data=DataConfig(crop_size=16),
    train=TrainConfig(iterations=2, batch_size=1),
)


@pytest.fixture
def small(monkeypatch):
    from dkpn import training_data

    monkeypatch.setattr(training_data, "GENERATED_SCENES", 2)
    monkeypatch.setattr(training_data, "GENERATED_VALIDATION", 1)
    monkeypatch.setattr(training_data, "GENERATED_SIDE", 64)
    monkeypatch.setattr(demo, "GENERATED_SIDE", 64)
    monkeypatch.setattr(demo, "HELD_OUT", 2)
    monkeypatch.setattr(demo, "demo_config", lambda minutes, model: QUICK)
    torch.manual_seed(0)
    network = DKPN(TINY).eval()
    monkeypatch.setattr(demo, "load", lambda device: network)


def test_the_demo_leaves_what_it_promises_and_can_be_repeated(small, tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| DKPN " in text
    assert "| fine-tuned " in text
    assert "| LDR " in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "photo.jpg",
        "photo_hdr.jpg",
        "photo_hdr.exr",
        "look.html",
        "comparison.png",
        "highlights.png",
        "training.png",
        "table.md",
        "per_image.csv",
        "run",
    }
    assert demo.main(["--out", str(tmp_path)]) == 0


def test_a_folder_without_images_is_an_error(small, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert demo.main(["--out", str(tmp_path / "out"), "--data", str(empty)]) == 2
    assert "empty" in capsys.readouterr().err


def test_the_demo_stays_within_its_minutes():
    config = demo.demo_config(4.0, TINY)
    assert config.train.minutes == 4.0
    assert dataclasses.replace(config.train, minutes=None).iterations > 1000
