"""The pictures that a prepared set is made from, and the licences that lie beside them."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dkpn.data import find_images
from dkpn.prepared import is_prepared

LICENCE_TABLE = "MANIFEST.csv"

_NOTICES = ("licence", "license", "copying", "notice")
_TEXTS = ("", ".txt", ".md")


@dataclass(frozen=True)
class Source:
    """A picture to prepare.

    Args:
        path: its file.
        relative: the path below the folder that was named, with ``/``.
        name: stem of its file in the set; no other has it.
        licence: as ``MANIFEST.csv`` says it; "" where nothing is said.
    """

    path: Path
    relative: str
    name: str
    licence: str


def find_sources(folders: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """List the HDR pictures of folders.

    A licence is taken from the column ``licence`` (or ``license``) of a table ``MANIFEST.csv`` in
    the folder of a picture or in one above, up to the one that holds the folder named; its column
    ``file`` has the path from the table's own folder, or from the one above that.

    Args:
        folders: at least one.

    Returns:
        The pictures in the order of the folders, sorted by path in each.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no folder is named, one holds no picture, or is a prepared set already.
    """
    if not folders:
        raise ValueError("folders: expected at least one, got none")
    sources, names = [], set()
    tables: dict[Path, dict[str, str]] = {}
    for folder in map(Path, folders):
        if is_prepared(folder):
            raise ValueError(f"{folder}: is a prepared set already; name the folder of its sources")
        for path in find_images(folder):
            name, count = path.stem, 1
            while name.lower() in names:  # some file systems take both cases for the same
                count += 1
                name = f"{path.stem}__{count}"
            names.add(name.lower())
            relative = path.relative_to(folder).as_posix()
            sources.append(Source(path, relative, name, _licence(path, folder, tables)))
    return sources


def licence_files(folders: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List the texts of licences in folders and in the folders that hold them; each name once."""
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        for place in (folder.resolve(), folder.resolve().parent):
            for path in sorted(place.iterdir()):
                named_so = path.name.lower().startswith(_NOTICES)
                if named_so and path.suffix.lower() in _TEXTS and path.is_file():
                    found.setdefault(path.name, path)
    return list(found.values())


def _licence(path: Path, folder: Path, tables: dict[Path, dict[str, str]]) -> str:
    """What the nearest table says; ``tables`` keeps those that were read."""
    path, top = path.resolve(), folder.resolve().parent
    for place in path.parents:
        if place not in tables:
            tables[place] = _read_table(place / LICENCE_TABLE)
        for base in (place, place.parent):
            licence = tables[place].get(path.relative_to(base).as_posix())
            if licence is not None:
                return licence
        if place == top:
            break
    return ""


def _read_table(path: Path) -> dict[str, str]:
    """Licence by file; empty where there is no such table."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table in UTF-8 ({error}); repair it") from None
    return {
        row["file"]: row.get("licence") or row.get("license") or ""
        for row in rows
        if row.get("file")
    }
