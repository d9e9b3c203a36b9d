"""All choices of a training run: the tables of one TOML file."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dkpn.camera import CameraConfig
from dkpn.config import DKPNConfig, TrainConfig, config_from_dict
from dkpn.losses import LossConfig
from dkpn.training_pairs import DataConfig

CONFIGS = Path(__file__).parent / "configs"
"""The configuration files that the package brings."""


@dataclass(frozen=True)
class RunConfig:
    """All choices of a run; each field is a table of the TOML file."""

    model: DKPNConfig = field(default_factory=DKPNConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def find_config(path: Path) -> Path:
    """The file at a path or, where there is none, the package's own of that name.

    Args:
        path: of a file, or a name like ``paper`` for ``configs/paper.toml`` of the package.

    Returns:
        The file's path.

    Raises:
        FileNotFoundError: there is neither.
    """
    if path.is_file():
        return path
    shipped = {file.stem: file for file in CONFIGS.glob("*.toml")}
    if str(path) in shipped:
        return shipped[str(path)]
    names = ", ".join(sorted(shipped))
    raise FileNotFoundError(f"{path}: no such file; expected a TOML configuration, or {names}")


def read_run_config(path: Path, base: Path | None = None) -> RunConfig:
    """Read a TOML file with tables ``[model]``, ``[loss]``, ``[camera]``, ``[data]``, ``[train]``.

    Args:
        path: the file, see :func:`find_config`; what it leaves out is as in ``base``.
        base: another such file; what it leaves out has its default.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, or a table, field or value is unknown or out of range.
        TypeError: a value has the wrong type.
    """
    path = find_config(path)
    values = _read_tables(path)
    if base is not None:
        tables = _read_tables(find_config(base))
        config_from_dict(RunConfig, tables, str(base))  # its own errors name its own file
        for name, table in values.items():
            both = isinstance(table, dict) and isinstance(tables.get(name), dict)
            tables[name] = tables[name] | table if both else table
        values = tables
    return config_from_dict(RunConfig, values, str(path))


def _read_tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from None
