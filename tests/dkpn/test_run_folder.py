import json
import subprocess

import pytest

from dkpn import run_folder
from dkpn.run_folder import code_version, find_resume, fingerprint, open_run
from dkpn.train import train
from tests.dkpn.training_runs import SMALLEST, tiny_config, tiny_pairs, tiny_scenes


def test_find_resume_never_mixes_runs(tmp_path):
    assert find_resume(tmp_path, "auto") is None
    assert find_resume(tmp_path, None) is None
    run = tiny_config(SMALLEST, iterations=4)
    train(run, tiny_pairs(tiny_scenes(), run), [], tmp_path, quiet=True)
    with pytest.raises(FileExistsError, match="--resume auto"):
        find_resume(tmp_path, None)
    older = tmp_path / "checkpoints" / "00000002"
    with pytest.raises(ValueError, match="newer checkpoints"):
        find_resume(tmp_path, str(older))
    assert find_resume(tmp_path / "elsewhere", str(older)) == older
    with pytest.raises(FileNotFoundError, match=r"state\.json"):
        find_resume(tmp_path, str(tmp_path / "nothing"))


def test_a_run_keeps_its_file_and_names_the_code_of_each_start(tmp_path, monkeypatch):
    source, out = tmp_path / "experiment.toml", tmp_path / "run"
    source.write_text("[train]\n")
    versions = iter(["first", "second", "third"])
    monkeypatch.setattr(run_folder, "code_version", lambda: next(versions))
    open_run(out, {"images": "none"}, source, 0)
    assert (out / "config.toml").read_text() == "[train]\n"
    open_run(out, {"images": "none"}, out / "config.toml", 40)
    values = json.loads((out / "run.json").read_text())
    assert values == {"images": "none", "code": {"0": "first", "40": "second"}}
    open_run(out, {"images": "none"}, None, 0)  # a new run, from its start
    assert json.loads((out / "run.json").read_text())["code"] == {"0": "third"}


def test_half_files_of_a_killed_process_are_removed_and_no_others(tmp_path):
    (tmp_path / "best").mkdir()
    half = [tmp_path / ".model-123-4567.safetensors", tmp_path / "best" / ".config-1-2.json"]
    kept = [tmp_path / ".notes", tmp_path / "plot-1-2.png"]
    for path in (*half, *kept):
        path.write_text("")
    open_run(tmp_path, {}, None, 0)
    assert not any(path.exists() for path in half)
    assert all(path.exists() for path in kept)


def git(folder, *words):
    names = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    command = ["git", "-C", str(folder), *names, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_program_not_of_a_repository_around_it(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(run_folder, "__file__", str(package / "run_folder.py"))
    outside = code_version()
    git(tmp_path, "init", "-q")
    (tmp_path / "notes").write_text("")
    git(tmp_path, "add", "notes")
    git(tmp_path, "commit", "-q", "-m", "notes")
    # Not a file of this repository: as a package in a virtual environment within a project.
    assert code_version() == outside
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-q", "-m", "package")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_version() == commit
    (package / "__init__.py").write_text("changed")
    assert code_version() == f"{commit}-dirty"


def test_the_fingerprint_tells_scenes_apart():
    run, scenes = tiny_config(), tiny_scenes()
    first = fingerprint(tiny_pairs(scenes, run))
    assert first.startswith("3 scenes, ")
    assert first == fingerprint(tiny_pairs(tiny_scenes(), run))
    assert first != fingerprint(tiny_pairs(scenes[::-1], run))
