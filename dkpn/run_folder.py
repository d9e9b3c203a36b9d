"""The folder of a training run: where a run goes on, and what it says about its origin."""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dkpn.checkpoint import checkpoint_iteration, latest_checkpoint, read_json, write_json
from dkpn.training_pairs import TrainingPairs


def find_resume(out: Path, resume: str | None) -> Path | None:
    """Decide which checkpoint a run goes on from.

    Args:
        out: the run's folder.
        resume: ``"auto"``: the newest of ``out``, or none; a checkpoint's folder; or None: start
            afresh, which needs a folder without checkpoints.

    Returns:
        The checkpoint's folder, None to start afresh.

    Raises:
        FileExistsError: ``out`` holds checkpoints and ``resume`` is None.
        FileNotFoundError: there is no such checkpoint.
        ValueError: ``out`` holds checkpoints newer than ``resume``.
    """
    latest = latest_checkpoint(out / "checkpoints")
    if resume == "auto":
        return latest
    if resume is None:
        if latest is not None:
            raise FileExistsError(
                f"{out}: holds a run already; go on with --resume auto, or choose another folder"
            )
        return None
    path = Path(resume)
    iteration = checkpoint_iteration(path)
    if latest is not None and checkpoint_iteration(latest) > iteration:
        raise ValueError(
            f"{path}: {out} holds newer checkpoints, the last is {latest.name}; remove those after "
            f"iteration {iteration}, or choose another folder for the run"
        )
    return path


def open_run(out: Path, run: Mapping[str, Any], config_file: Path | None, iteration: int) -> None:
    """Prepare the folder of a run that starts or goes on: its origin, and no rubbish.

    Args:
        out: the folder, created if absent.
        run: the whole configuration, for ``run.json``.
        config_file: the file that it was read from, for ``config.toml``.
        iteration: where the run starts or goes on; ``run.json`` names the code from there on.
    """
    out.mkdir(parents=True, exist_ok=True)
    # Half a file of a process that was killed while it wrote.
    for path in out.rglob(".*"):
        if re.fullmatch(r"\..*-\d+-\d+\.\w+", path.name):
            path.unlink()
    record = out / "run.json"
    code = read_json(record).get("code", {}) if iteration > 0 and record.is_file() else {}
    write_json(record, dict(run) | {"code": code | {str(iteration): code_version()}})
    copy = out / "config.toml"
    if config_file is not None and not (copy.exists() and config_file.samefile(copy)):
        shutil.copyfile(config_file, copy)


def code_version() -> str:
    """The commit of this program, ``-dirty`` behind it where files differ from it.

    Outside of its own git repository the version of the installed package, else ``"unknown"``.
    """
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    # An installed copy may lie within a repository that is not its own, and is no file of that.
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
    commit = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(commit, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        return f"kpnops {metadata.version('kpnops')}"
    except metadata.PackageNotFoundError:
        return "unknown"


def fingerprint(pairs: TrainingPairs) -> str:
    """Number and hash of the training scenes: to go on with others would be another run."""
    digest = hashlib.sha256()
    for scene in pairs.scenes:
        digest.update(str((scene.pixels.shape, scene.panorama)).encode())
        digest.update(np.ascontiguousarray(scene.pixels[::16, ::16]).tobytes())
    return f"{len(pairs.scenes)} scenes, {digest.hexdigest()[:16]}"
