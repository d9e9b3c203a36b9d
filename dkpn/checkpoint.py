"""Weights and checkpoints: tensors in safetensors, everything else in JSON, nothing pickled.

A *weights* file is ``model.safetensors`` with the network's configuration in its metadata, and the
same in ``config.json`` beside it. A *checkpoint* is a folder that holds all that a run needs to go
on:

======================  ====================================================================
``model.safetensors``    weights under training
``ema.safetensors``      exponential moving average of the weights
``optimizer.safetensors``  moments and step counts, ``<parameter index>.<name>``
``rng.safetensors``      state of torch's random number generators
``state.json``           format, iteration, seconds of training, configuration of the run
======================  ====================================================================

Every file, and a checkpoint as a whole, appears under its name only when it is complete.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from dkpn.config import DKPNConfig, config_differences, config_from_dict
from dkpn.hdr_io import write_atomically
from dkpn.model import DKPN
from dkpn.tensor_file import read_tensors

FORMAT = "dkpn-1"
_UNFINISHED = ".writing-"


@dataclass
class TrainingState:
    """What changes while a run goes on.

    Args:
        model: the network under training.
        ema: a second network that holds the moving average of its weights.
        optimizer: of ``model.parameters()``.
        iteration: number of optimizer steps done.
    """

    model: DKPN
    ema: DKPN
    optimizer: torch.optim.Optimizer
    iteration: int = 0


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece."""
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_weights(folder: Path, model: DKPN) -> Path:
    """Write ``model.safetensors`` with the configuration in it, and ``config.json``, to a folder.

    Args:
        folder: created if absent.
        model: the network.

    Returns:
        The path of the safetensors file.

    Raises:
        OSError: the disk is full, or cannot be written to; what was there before is intact.
    """
    config = dataclasses.asdict(model.config)
    path = folder / "model.safetensors"
    data = save(_contiguous(model.state_dict()), {"format": FORMAT, "config": json.dumps(config)})
    with _naming(path):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config)
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return path


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in an OSError, which may name no file at all, what could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path}: could not be written ({error.strerror or error}); what was there before is "
            "intact; make room and go on with --resume auto",
        ) from error


def load_weights(path: str | Path, op: Literal["fused", "naive"] = "fused") -> DKPN:
    """Read a network from a weights file or from a folder that holds ``model.safetensors``.

    Args:
        path: file or folder.
        op: which filter the network uses, see :class:`dkpn.model.DKPN`.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds no ``model.safetensors``.
        ValueError: the file is damaged or of another program, no configuration is with it, two
            different ones are, or its tensors do not fit the configuration.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    tensors, metadata = read_tensors(file)
    config = _config_of(file, metadata)
    model = DKPN(config, op)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != actual:
        differences = config_differences(expected, actual)
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"{file}: the tensors do not fit the configuration stored with them (expected and "
            f"actual shape of {'; '.join(differences[:3])}{more}); take both from one training run"
        )
    model.load_state_dict(tensors)
    return model.eval()


def _config_of(file: Path, metadata: Mapping[str, str]) -> DKPNConfig:
    """The configuration from the metadata, from config.json beside it, or from both if equal."""
    found: dict[str, Mapping[str, Any]] = {}
    if "config" in metadata:
        found[f"{file} (metadata)"] = _parse_json(metadata["config"], f"{file} (metadata)")
    beside = file.with_name("config.json")
    if beside.is_file():
        found[str(beside)] = read_json(beside)
    if not found:
        raise ValueError(
            f"{file}: no network configuration in its metadata and no config.json beside it; "
            "expected weights written by `dkpn train`"
        )
    configs = {
        where: config_from_dict(DKPNConfig, values, where) for where, values in found.items()
    }
    first, *others = configs.items()
    for where, config in others:
        differences = config_differences(dataclasses.asdict(first[1]), dataclasses.asdict(config))
        if differences:
            raise ValueError(
                f"{first[0]} and {where} differ in {'; '.join(differences)}; "
                "remove the one that does not belong to these weights"
            )
    return first[1]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; ValueError if it holds anything else."""
    return _parse_json(path.read_text(encoding="utf-8"), str(path))


def _parse_json(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected JSON, got something else ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(values).__name__}")
    return values


def save_checkpoint(
    folder: Path,
    state: TrainingState,
    config: Mapping[str, Any],
    keep: int,
    seconds: float,
) -> Path:
    """Write one checkpoint into ``folder`` and remove all but the newest ``keep``.

    Args:
        folder: the run's folder of checkpoints, created if absent.
        state: what to write.
        config: the run's whole configuration, JSON-serialisable; compared when resuming.
        keep: number of checkpoints left, at least 1.
        seconds: of training so far.

    Returns:
        The checkpoint's folder, named by the iteration.

    Raises:
        FloatingPointError: a weight is NaN or infinite; nothing is written.
        OSError: the disk is full, or cannot be written to; older checkpoints are intact.
    """
    _require_finite(state)
    target = folder / f"{state.iteration:08d}"
    with _naming(target):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary = folder / f"{_UNFINISHED}{target.name}"
        temporary.mkdir()
        try:
            for name, tensors in (
                ("model", state.model.state_dict()),
                ("ema", state.ema.state_dict()),
                ("optimizer", _moments(state.optimizer)),
                ("rng", _rng_state()),
            ):
                _write_through(temporary / f"{name}.safetensors", save(_contiguous(tensors)))
            values = {
                "format": FORMAT,
                "iteration": state.iteration,
                "seconds": seconds,
                "config": config,
            }
            _write_through(temporary / "state.json", json.dumps(values, indent=2).encode())
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in _checkpoints(folder)[:-keep]:
            # Renamed first: what is called a checkpoint is a whole one, whenever the power fails.
            os.replace(old, folder / f"{_UNFINISHED}{old.name}")
        _sweep(folder)
    return target


def _require_finite(state: TrainingState) -> None:
    for module in (state.model, state.ema):
        for name, tensor in module.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise FloatingPointError(
                    f"{name} is no longer finite at iteration {state.iteration} and is not saved; "
                    "lower learning_rate and go on from the last checkpoint"
                )


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it, so that a rename after it never comes first."""
    # Not safetensors' save_file(), whose files only their owner may read.
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed left unfinished, or was about to remove."""
    for entry in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(entry)


def load_checkpoint(
    path: Path,
    state: TrainingState,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> float:
    """Put the contents of a checkpoint into ``state``, and torch's random state back.

    Args:
        path: the checkpoint's folder.
        state: a fresh state of the same configuration; changed in place.
        config: the run's whole configuration as it would be saved.
        defaults: a configuration of the same form, whose values stand for fields of its tables that
            an older version did not have.

    Returns:
        Seconds of training so far.

    Raises:
        FileNotFoundError: there is no such checkpoint, or a file of it is missing.
        ValueError: a file is damaged, or the checkpoint belongs to another configuration.
    """
    iteration = checkpoint_iteration(path)
    values = read_json(path / "state.json")
    if values.get("format") != FORMAT:
        raise ValueError(
            f"{path / 'state.json'}: expected format {FORMAT!r}, got {values.get('format')!r}"
        )
    # Through JSON and back, so that tuples and lists compare equal.
    now, filled = (json.loads(json.dumps(table)) for table in (config, defaults or {}))
    differences = _nested_differences(_filled(values["config"], filled), now)
    if differences:
        raise ValueError(
            f"{path}: was trained with another configuration (checkpoint and now: "
            f"{'; '.join(differences)}); resume with the same one, or start in another folder"
        )
    for name, module in (("model", state.model), ("ema", state.ema)):
        tensors, _ = read_tensors(path / f"{name}.safetensors")
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{path / name}.safetensors: {error}") from None
    _load_optimizer(state.optimizer, read_tensors(path / "optimizer.safetensors")[0])
    _restore_rng_state(read_tensors(path / "rng.safetensors")[0])
    state.iteration = iteration
    return float(values["seconds"])


def checkpoint_iteration(path: Path) -> int:
    """The iteration of a checkpoint's folder; FileNotFoundError where none is."""
    if not (path / "state.json").is_file():
        raise FileNotFoundError(f"{path}: no checkpoint here; expected a folder with state.json")
    return int(read_json(path / "state.json").get("iteration", -1))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder of checkpoints, None without any."""
    checkpoints = _checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if re.fullmatch(r"\d{8}", entry.name))


def _filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the tables in ``values`` the fields that only those in ``defaults`` have."""
    filled = dict(values)
    for name, table in defaults.items():
        if isinstance(table, dict) and isinstance(filled.get(name), dict):
            filled[name] = table | filled[name]
    return filled


def _nested_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Like config_differences, with the fields of nested tables compared one by one."""
    differences = []
    for name in sorted(set(first) | set(second)):
        one, other = first.get(name, "absent"), second.get(name, "absent")
        if isinstance(one, dict) and isinstance(other, dict):
            differences += [f"{name}.{text}" for text in config_differences(one, other)]
        elif one != other:
            differences.append(f"{name}: {one!r} and {other!r}")
    return differences


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    values = optimizer.state_dict()
    values["state"] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".", 1)
        values["state"].setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict(values)


def _rng_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_rng_state(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
