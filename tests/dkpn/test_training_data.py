import dataclasses

import pytest

from dkpn.scenes import generate_scenes
from dkpn.training_data import readable, spread, training_data
from dkpn.training_pairs import DataConfig
from tests.dkpn.training_runs import tiny_config

pytest.importorskip("OpenEXR", reason="the images are EXR files")

from dkpn.hdr_io import write_hdr


@pytest.fixture
def folder(tmp_path):
    for index, scene in enumerate(generate_scenes(3, 32)):
        for crop in range(2):
            write_hdr(tmp_path / f"scene{index}__crop{crop}.exr", scene)
    return tmp_path


def test_spread_takes_from_everywhere(tmp_path):
    files = [tmp_path / str(index) for index in range(10)]
    assert spread(files, 5) == files[::2]
    assert spread(files, 50) == files


def test_data_without_a_validation_folder_holds_scenes_back(folder):
    run = tiny_config()
    training, held_out = training_data(run, folder, None)
    assert len(training.scenes) == 4
    assert len({name.split("__")[0] for name, _, _ in held_out}) == 1
    training, held_out = training_data(run, folder, folder)
    assert (len(training.scenes), len(held_out)) == (6, 6)
    large = dataclasses.replace(run, data=DataConfig(crop_size=64))
    with pytest.raises(ValueError, match=r"scene0.*crop_size = 64.*32 x 32"):
        training_data(large, folder, folder)


def test_damaged_images_are_skipped_counted_and_named(folder, capsys):
    whole = (folder / "scene1__crop0.exr").read_bytes()
    (folder / "scene1__crop0.exr").write_bytes(whole[:200])
    (folder / "scene2__crop1.exr").write_bytes(b"")
    training, held_out = training_data(tiny_config(), folder, folder)
    assert [scene.name for scene in training.scenes] == ["scene0", "scene0", "scene1", "scene2"]
    assert len(held_out) == 4
    message = capsys.readouterr().err
    assert message.count("skipped 2 of 6 images") == 2  # of training and of validation
    assert "scene1__crop0.exr" in message
    assert "scene2__crop1.exr" in message
    training_data(tiny_config(), folder, folder, quiet=True)
    assert capsys.readouterr().err == ""


def test_a_folder_of_nothing_but_damaged_images_is_an_error(tmp_path):
    (tmp_path / "one.exr").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of 1 images can be read.*one\.exr"):
        training_data(tiny_config(), tmp_path, tmp_path)


def test_readable_keeps_the_order_and_passes_on_slips_of_the_program(tmp_path):
    files = [tmp_path / str(index) for index in range(20)]

    def read(path):
        if path.name in ("3", "17"):
            raise ValueError(f"{path}: damaged")
        return int(path.name)

    assert readable(files, read, quiet=True) == [i for i in range(20) if i not in (3, 17)]
    with pytest.raises(AttributeError):
        readable(files, lambda path: path.no_such_thing)
