import dataclasses
import errno
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dkpn import DKPN, DKPNConfig
from dkpn import checkpoint as checkpoint_module
from dkpn.checkpoint import (
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from dkpn.tensor_file import read_tensors

TINY = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
)
RUN = {"model": dataclasses.asdict(TINY), "train": {"seed": 0}}


def trained_state(seed=0, steps=2):
    torch.manual_seed(seed)
    model, ema = DKPN(TINY), DKPN(TINY)
    state = TrainingState(model, ema, torch.optim.AdamW(model.parameters(), lr=1e-3))
    image = torch.rand(1, 3, 4, 4)
    for _ in range(steps):
        state.optimizer.zero_grad()
        model(image).result.sum().backward()
        state.optimizer.step()
        state.iteration += 1
    return state


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def weights(tmp_path):
    state = trained_state()
    save_weights(tmp_path / "weights", state.model)
    return tmp_path / "weights", state.model


@pytest.mark.parametrize("target", ["", "model.safetensors"])
def test_weights_come_back_from_file_and_folder(weights, target):
    folder, model = weights
    loaded = load_weights(folder / target)
    assert loaded.config == TINY
    assert equal(loaded.state_dict(), model.state_dict())
    assert not loaded.training


def test_a_weights_file_needs_nothing_beside_it(weights, tmp_path):
    folder, model = weights
    alone = tmp_path / "alone.safetensors"
    shutil.copy(folder / "model.safetensors", alone)
    assert equal(load_weights(alone).state_dict(), model.state_dict())


def test_a_network_saves_and_loads_itself(tmp_path):
    torch.manual_seed(3)
    network = DKPN(TINY)
    network.save_pretrained(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = DKPN.from_pretrained(tmp_path / "mine")
    assert not loaded.training
    assert loaded.config == TINY
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        network.save_pretrained(tmp_path / "file" / "mine")


def test_a_config_beside_stands_in_for_missing_metadata(weights):
    folder, model = weights
    save_file(model.state_dict(), folder / "model.safetensors")
    assert equal(load_weights(folder).state_dict(), model.state_dict())
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no network configuration.*config\.json"):
        load_weights(folder)


def test_two_configs_that_differ_are_an_error(weights):
    folder, _ = weights
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"mask_tau": 0.1}))
    with pytest.raises(ValueError, match=r"config\.json differ in mask_tau: 0\.05 and 0\.1"):
        load_weights(folder)


def test_tensors_that_do_not_fit_are_named(weights):
    folder, model = weights
    tensors = dict(model.state_dict())
    tensors["backbone.stem.bias"] = torch.zeros(5)
    del tensors["pooled.linear.0.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"backbone\.stem\.bias.*\(4,\).*\(5,\).*pooled\.linear"):
        load_weights(folder)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_weights_name_the_file(weights, damage):
    folder, _ = weights
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-100], "text": b"hello world", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a complete safetensors file"):
        load_weights(folder)


def test_damaged_config_names_the_file(weights):
    folder, _ = weights
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: expected JSON"):
        load_weights(folder)


def test_missing_weights_name_the_path(tmp_path):
    for path in (tmp_path, tmp_path / "no.safetensors"):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            load_weights(path)


@pytest.mark.parametrize("name", ["old.pth", "old.ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_way_to_convert_a_pickle_works(weights, name, zipped):
    folder, model = weights
    pickled = folder / name
    torch.save(model.state_dict(), pickled, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=f"{name}: .*no pickle is loaded") as caught:
        load_weights(pickled)
    assert "\n" not in str(caught.value)
    command = re.search(r'python -c "([^"]+)"', str(caught.value))
    exec(command[1], {})
    assert equal(
        load_weights(folder / f"{pickled.stem}_converted.safetensors").state_dict(),
        model.state_dict(),
    )


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    # 640 bytes, as 80 02 00 ..., the first bytes of a pickle
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"pad": ""})
    padding = 640 - int.from_bytes(path.read_bytes()[:8], "little")
    save_file({"a": torch.zeros(1)}, path, {"pad": "x" * padding})
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert list(read_tensors(path)[0]) == ["a"]


def test_a_checkpoint_restores_everything(tmp_path):
    state = trained_state()
    torch.manual_seed(7)
    path = save_checkpoint(tmp_path, state, RUN, keep=1, seconds=2.5)
    expected_draw = torch.rand(3)
    fresh = trained_state(seed=1, steps=0)
    assert load_checkpoint(path, fresh, RUN) == 2.5
    assert torch.equal(torch.rand(3), expected_draw)
    assert fresh.iteration == 2
    assert equal(fresh.model.state_dict(), state.model.state_dict())
    assert equal(fresh.ema.state_dict(), state.ema.state_dict())
    expected, actual = state.optimizer.state_dict(), fresh.optimizer.state_dict()
    assert expected["param_groups"] == actual["param_groups"]
    assert expected["state"].keys() == actual["state"].keys()
    for index in expected["state"]:
        assert equal(actual["state"][index], expected["state"][index])


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    state = trained_state()
    for iteration in (2, 10, 9, 100):
        state.iteration = iteration
        save_checkpoint(tmp_path, state, RUN, keep=2, seconds=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000010", "00000100"]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.name == "00000100"
    assert latest_checkpoint(tmp_path / "absent") is None


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    state = trained_state()
    good = save_checkpoint(tmp_path, state, RUN, keep=1, seconds=0.0)
    state.iteration += 1

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"00000003: could not be written \(No space") as caught:
        save_checkpoint(tmp_path, state, RUN, keep=1, seconds=0.0)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == [good]


@pytest.mark.parametrize("which", ["model", "ema"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, which, value):
    state = trained_state()
    with torch.no_grad():
        getattr(state, which).backbone.stem.bias[1] = value
    with pytest.raises(FloatingPointError, match=r"backbone\.stem\.bias.*iteration 2"):
        save_checkpoint(tmp_path, state, RUN, keep=1, seconds=0.0)
    assert list(tmp_path.iterdir()) == []


def test_fields_that_an_older_checkpoint_lacks_have_their_defaults(tmp_path):
    path = save_checkpoint(tmp_path, trained_state(), RUN, keep=1, seconds=0.0)
    now = {"model": RUN["model"], "train": {"seed": 0, "accumulate": 1}}
    load_checkpoint(path, trained_state(), now, defaults={"train": {"accumulate": 1}})
    with pytest.raises(ValueError, match=r"train\.accumulate: 2 and 1"):
        load_checkpoint(path, trained_state(), now, defaults={"train": {"accumulate": 2}})
    with pytest.raises(ValueError, match=r"train\.accumulate: 'absent' and 1"):
        load_checkpoint(path, trained_state(), now)


def test_another_configuration_is_refused_with_both_values(tmp_path):
    path = save_checkpoint(tmp_path, trained_state(), RUN, keep=1, seconds=0.0)
    other = {"model": RUN["model"], "train": {"seed": 1}}
    with pytest.raises(ValueError, match=r"train\.seed: 0 and 1"):
        load_checkpoint(path, trained_state(), other)


@pytest.mark.parametrize("name", ["model", "ema", "optimizer", "rng"])
def test_a_damaged_checkpoint_names_the_file(tmp_path, name):
    path = save_checkpoint(tmp_path, trained_state(), RUN, keep=1, seconds=0.0)
    file = path / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{name}\.safetensors"):
        load_checkpoint(path, trained_state(), RUN)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\.safetensors"):
        load_checkpoint(path, trained_state(), RUN)


def test_a_folder_without_state_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"state\.json"):
        load_checkpoint(tmp_path, trained_state(), RUN)


def test_nothing_is_pickled():
    """torch.load runs code from the file that it reads; no source of the package may name it."""
    sources = Path(checkpoint_module.__file__).parent.rglob("*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    # numpy's archives hold plain arrays, as long as it is told to refuse anything else.
    assert text.count("np.load(") <= text.count("allow_pickle=False)")
    text = text.replace("allow_pickle=False)", "")
    # What a message tells the user to run.
    text = text.replace("torch.load({there!r}, weights_only=True)", "", 1)
    for forbidden in ("torch.load", "torch.save", "import pickle", "allow_pickle"):
        assert forbidden not in text


def test_files_have_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    path = save_checkpoint(tmp_path / "run", trained_state(), RUN, keep=1, seconds=0.0)
    files = [*path.iterdir(), save_weights(tmp_path / "weights", DKPN(TINY))]
    assert {file.stat().st_mode for file in files} == {plain.stat().st_mode}


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    (tmp_path / ".writing-00000001").mkdir()
    path = save_checkpoint(tmp_path, trained_state(), RUN, keep=1, seconds=0.0)
    assert list(tmp_path.iterdir()) == [path]
