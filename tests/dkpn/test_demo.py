import dataclasses

import pytest

from dkpn import DKPNConfig, demo
from dkpn.config import TrainConfig
from dkpn.data import DataConfig
from dkpn.train import RunConfig

pytest.importorskip("OpenEXR", reason="the demo writes an EXR file")

TINY = RunConfig(
    model=DKPNConfig(
        width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
    ),
    data=DataConfig(crop_size=16),
    train=TrainConfig(iterations=2, batch_size=1, workers=0),
)


@pytest.fixture
def small(monkeypatch):
    from dkpn import train

    monkeypatch.setattr(train, "GENERATED_SCENES", 2)
    monkeypatch.setattr(train, "GENERATED_VALIDATION", 1)
    monkeypatch.setattr(train, "GENERATED_SIDE", 64)
    monkeypatch.setattr(demo, "GENERATED_SIDE", 64)
    monkeypatch.setattr(demo, "HELD_OUT", 2)
    monkeypatch.setattr(demo, "demo_config", lambda minutes: TINY)


def test_the_demo_leaves_what_it_promises_and_can_be_repeated(small, tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| DKPN " in text
    assert "| LDR " in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "photo.jpg",
        "photo.exr",
        "photo_preview.png",
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
    config = demo.demo_config(4.0)
    assert config.train.minutes == 4.0
    assert dataclasses.replace(config.train, minutes=None).iterations > 1000
