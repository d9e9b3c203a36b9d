import csv
import dataclasses
import math
import os
import shutil
import signal

import pytest
import torch

from dkpn import DKPNConfig
from dkpn.checkpoint import load_weights
from dkpn.config import TrainConfig
from dkpn.data import DataConfig, TrainingPairs, make_evaluation_pair
from dkpn.scenes import generate_scenes
from dkpn.train import (
    RunConfig,
    StopRequest,
    find_resume,
    read_run_config,
    spread,
    train,
    training_data,
)

TINY = DKPNConfig(
    width=8,
    pooled_width=8,
    channel_multipliers=(1, 2),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)


class StopAfter(StopRequest):
    """Asks for a stop at a given iteration, as Ctrl-C would."""

    def __init__(self, iteration):
        super().__init__()
        self.iteration = iteration

    def after(self, iteration):
        self.requested = iteration >= self.iteration
        return self.requested


def config(**fields):
    settings = {
        "iterations": 6,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "validate_every": 3,
        "checkpoint_every": 2,
        "workers": 0,
    }
    return RunConfig(
        model=TINY, data=DataConfig(crop_size=24), train=TrainConfig(**(settings | fields))
    )


@pytest.fixture(scope="module")
def scenes():
    return generate_scenes(3, 32)


def pairs(scenes, run):
    return TrainingPairs(scenes, run.data, camera=run.camera, seed=run.train.seed)


def validation(scenes):
    made = [make_evaluation_pair(scene, f"{i}.exr") for i, scene in enumerate(scenes[:2])]
    return [(pair.name, pair.input, pair.target) for pair in made]


def rows(folder, split):
    with (folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def weights(folder):
    return torch.nn.utils.parameters_to_vector(load_weights(folder).parameters())


def test_a_run_leaves_all_that_its_docstring_names(scenes, tmp_path):
    run = config()
    model = train(run, pairs(scenes, run), validation(scenes), tmp_path, quiet=True)
    expected = {"run.json", "metrics.csv", "metrics.png", "validation", "checkpoints"}
    expected |= {"model.safetensors", "config.json"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000002", "00000004", "00000006"]
    assert [row["iteration"] for row in rows(tmp_path, "validation")] == ["0", "3", "6"]
    assert [path.name for path in sorted((tmp_path / "validation").iterdir())] == [
        "00000000.png",
        "00000003.png",
        "00000006.png",
    ]
    # A row for each checkpoint: what is saved has been found to be finite.
    assert [row["iteration"] for row in rows(tmp_path, "train")] == ["2", "4", "6"]
    assert all(math.isfinite(float(row["total"])) for row in rows(tmp_path, "train"))
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(weights(tmp_path), vector)


@pytest.mark.parametrize("where", [1, 3])
def test_stopped_and_resumed_gives_the_same_weights_bit_for_bit(scenes, tmp_path, where):
    run = config()
    train(run, pairs(scenes, run), validation(scenes), tmp_path / "whole", quiet=True)
    stopped = tmp_path / "stopped"
    stop = StopAfter(where)
    train(run, pairs(scenes, run), validation(scenes), stopped, stop=stop, quiet=True)
    checkpoint = find_resume(stopped, "auto")
    assert checkpoint is not None
    assert int(checkpoint.name) == where
    torch.manual_seed(99)  # another process would start with other random numbers
    train(run, pairs(scenes, run), validation(scenes), stopped, resume=checkpoint, quiet=True)
    assert torch.equal(weights(stopped), weights(tmp_path / "whole"))
    for split in ("validation", "train"):
        last = rows(stopped, split)[-1]
        assert last["iteration"] == "6"
    # Numbers too, wherever both validated: a run that is told to stop does not validate first.
    kept = ("total", "image", "clipped", "preliminary", "psnr")
    whole = {row["iteration"]: row for row in rows(tmp_path / "whole", "validation")}
    for row in rows(stopped, "validation"):
        assert [row[name] for name in kept] == [whole[row["iteration"]][name] for name in kept]


def test_rows_after_the_checkpoint_are_written_again_not_twice(scenes, tmp_path):
    run = config(iterations=4)
    train(run, pairs(scenes, run), validation(scenes)[:1], tmp_path, quiet=True)
    shutil.rmtree(tmp_path / "checkpoints" / "00000004")
    resume = find_resume(tmp_path, "auto")
    train(run, pairs(scenes, run), validation(scenes)[:1], tmp_path, resume=resume, quiet=True)
    assert [row["iteration"] for row in rows(tmp_path, "validation")] == ["0", "3", "4"]
    assert [row["iteration"] for row in rows(tmp_path, "train")] == ["2", "4"]


def test_resuming_a_finished_run_changes_nothing(scenes, tmp_path):
    run = config(iterations=2)
    first = train(run, pairs(scenes, run), [], tmp_path, quiet=True)
    resume = find_resume(tmp_path, "auto")
    again = train(run, pairs(scenes, run), [], tmp_path, resume=resume, quiet=True)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_training_lowers_the_loss_on_one_scene(scenes, tmp_path):
    run = config(
        learning_rate=3e-3, ema_decay=0.8, iterations=30, validate_every=30, checkpoint_every=30
    )
    train(run, pairs(scenes[:1], run), validation(scenes[:1]), tmp_path, quiet=True)
    before, after = rows(tmp_path, "validation")
    assert float(after["total"]) < float(before["total"])


def test_other_images_or_settings_are_another_run(scenes, tmp_path):
    run = config(iterations=2)
    train(run, pairs(scenes, run), [], tmp_path, quiet=True)
    resume = find_resume(tmp_path, "auto")
    with pytest.raises(ValueError, match=r"images: '3 images.*'2 images"):
        train(run, pairs(scenes[:2], run), [], tmp_path, resume=resume, quiet=True)
    other = config(iterations=3)
    with pytest.raises(ValueError, match=r"train\.iterations: 2 and 3"):
        train(other, pairs(scenes, other), [], tmp_path, resume=resume, quiet=True)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(scenes, tmp_path):
    run = config(learning_rate=1e30, iterations=20)
    with pytest.raises(ValueError, match="learning_rate"):
        train(run, pairs(scenes, run), [], tmp_path, quiet=True)


def test_a_signal_asks_for_a_stop_and_the_handlers_come_back(scenes, tmp_path):
    usual = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    class Interrupted(StopRequest):
        def after(self, iteration):
            if iteration == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().after(iteration)

    run, stop = config(), Interrupted()
    with stop.listening():
        train(run, pairs(scenes, run), [], tmp_path, stop=stop, quiet=True)
    assert stop.requested
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == usual
    latest = find_resume(tmp_path, "auto")
    assert latest is not None
    # The signal's handler runs between two bytecodes, so the loop may be one step further.
    assert int(latest.name) in (2, 3)


def test_find_resume_never_mixes_runs(scenes, tmp_path):
    assert find_resume(tmp_path, "auto") is None
    assert find_resume(tmp_path, None) is None
    run = config(iterations=4)
    train(run, pairs(scenes, run), [], tmp_path, quiet=True)
    with pytest.raises(FileExistsError, match="--resume auto"):
        find_resume(tmp_path, None)
    older = tmp_path / "checkpoints" / "00000002"
    with pytest.raises(ValueError, match="newer checkpoints"):
        find_resume(tmp_path, str(older))
    assert find_resume(tmp_path / "elsewhere", str(older)) == older
    with pytest.raises(FileNotFoundError, match=r"state\.json"):
        find_resume(tmp_path, str(tmp_path / "nothing"))


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
    with pytest.raises(FileNotFoundError, match=r"absent\.toml"):
        read_run_config(tmp_path / "absent.toml")


def test_spread_takes_from_everywhere(tmp_path):
    files = [tmp_path / str(index) for index in range(10)]
    assert spread(files, 5) == files[::2]
    assert spread(files, 50) == files


def test_data_without_a_validation_folder_holds_scenes_back(tmp_path, scenes):
    pytest.importorskip("OpenEXR")
    from dkpn.hdr_io import write_hdr

    for index, scene in enumerate(scenes):
        for crop in range(2):
            write_hdr(tmp_path / f"scene{index}__crop{crop}.exr", scene)
    run = config()
    training, held_out = training_data(run, tmp_path, None)
    assert len(training.images) == 4
    assert len({name.split("__")[0] for name, _, _ in held_out}) == 1
    training, held_out = training_data(run, tmp_path, tmp_path)
    assert (len(training.images), len(held_out)) == (6, 6)
    large = dataclasses.replace(run, data=DataConfig(crop_size=64))
    with pytest.raises(ValueError, match=r"scene\d__crop\d\.exr.*crop_size = 64.*32 x 32"):
        training_data(large, tmp_path, tmp_path)
