"""Turns folders of HDR pictures into a prepared set, see :mod:`dkpn.prepared`.

Where the set may have no more than so many bytes, it gives up in turn, until it fits, what costs
training least:

1. four of the ten bits of the mantissa (unless ``bits`` says how many stay): each value is then
   wrong by at most 0.8 %, about as much as a Radiance file is anyway, and less than the step of an
   8-bit photo;
2. photos whose scene has a panorama as well: they are views of it, and training cuts its own;
3. sharpness: all pictures are shrunk by one factor, averaging areas in linear light.

Panoramas are not cut into views beforehand: one view of 90° shows a sixth of the sphere for a
quarter of the bytes of the whole, and always the same sixth.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from dkpn.data import scene_name
from dkpn.prepare.pictures import (
    Picture,
    PrepareSettings,
    Refusal,
    inspect,
    sort_out,
    write_picture,
)
from dkpn.prepare.sources import find_sources, licence_files
from dkpn.prepared import FORMAT, MANIFEST, MANTISSA, VERSION, is_prepared

FEWER_BITS = 6
MIB = 2**20

_SAMPLE = 12  # pictures that are compressed to estimate the size of a set
_MARGIN = 0.985  # of the size asked for is aimed at, since estimates are not exact
_ROUNDS = 8


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` made.

    Args:
        folder: the set.
        manifest: what its ``manifest.json`` says.
        refused: the sources that are not in it.
        bytes: size of all of its files.
    """

    folder: Path
    manifest: dict[str, Any]
    refused: tuple[Refusal, ...]
    bytes: int


@dataclass(frozen=True)
class _Plan:
    """What is kept of the pictures."""

    pictures: tuple[Picture, ...]
    bits: int
    left_out: tuple[Picture, ...] = ()
    scale: float = 1.0


def prepare(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: PrepareSettings | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Make a prepared set; it appears under its name only when it is whole.

    Args:
        folders: folders of .hdr and .exr files, searched with the folders in them.
        out: the set, a folder that does not exist; what is above it does.
        settings: all choices.
        overwrite: replace ``out`` where it is a prepared set or an empty folder.
        say: called with a line for each step.

    Returns:
        What was made, and what was refused.

    Raises:
        FileExistsError: ``out`` exists, and ``overwrite`` does not allow to replace it.
        FileNotFoundError: a folder does not exist.
        ValueError: no picture can be used, or the smallest set is larger than ``max_bytes``.
        OSError: the set cannot be written.
        ModuleNotFoundError: a codec is not installed.
    """
    settings, out = settings or PrepareSettings(), Path(out)
    _check_target(out, overwrite)
    sources = find_sources(folders)
    say(f"reading {len(sources)} pictures")
    found = _at_once(lambda source: inspect(source, settings), sources)
    pictures, refused = sort_out(found)
    if not pictures:
        raise ValueError(
            f"none of {len(sources)} pictures can be used; the first: {refused[0].source}: "
            f"{refused[0].reason}"
        )
    # One name, so that a run that was killed leaves no more than one such folder, until the next.
    temporary = out.with_name(f".{out.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        plan = _plan(pictures, settings, temporary, say)
        manifest, size = _write_to_fit(plan, settings, folders, refused, temporary, say)
        if overwrite and out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Prepared(out, manifest, tuple(refused), size)


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: the folder {out.parent} does not exist; create it first")
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{out}: exists; choose another name, or replace it with --overwrite")
    if not out.is_dir() or (any(out.iterdir()) and not is_prepared(out)):
        raise FileExistsError(
            f"{out}: is neither a prepared set nor an empty folder, and is not overwritten; choose "
            "another name"
        )


def _plan(
    pictures: list[Picture], settings: PrepareSettings, folder: Path, say: Callable[[str], None]
) -> _Plan:
    """Decide what is given up, by the sizes of some compressed pictures."""
    scenes = {scene_name(picture.source.path) for picture in pictures if picture.panorama}
    covered = tuple(
        one for one in pictures if not one.panorama and scene_name(one.source.path) in scenes
    )
    without = tuple(one for one in pictures if one not in covered)
    plan = _Plan(tuple(pictures), settings.bits or MANTISSA)
    if settings.covered == "drop":
        plan = replace(plan, pictures=without, left_out=covered)
    if settings.max_bytes is None:
        return plan
    steps = [plan]
    if settings.bits is None:
        steps.append(replace(steps[-1], bits=FEWER_BITS))
    if settings.covered == "auto" and covered:
        steps.append(replace(steps[-1], pictures=without, left_out=covered))
    folder.mkdir()
    size = 0.0
    for plan in steps:
        size = _estimate(plan, settings, folder)
        say(
            f"{len(plan.pictures)} pictures with {plan.bits} bits of mantissa: "
            f"about {size / MIB:.1f} MiB"
        )
        if size <= settings.max_bytes * _MARGIN:
            return plan
    for _ in range(2):  # sizes fall a little slower than areas
        plan = replace(plan, scale=plan.scale * math.sqrt(settings.max_bytes * _MARGIN / size))
        size = _estimate(plan, settings, folder)
        say(f"shrunk to {plan.scale:.3f}: about {size / MIB:.1f} MiB")
    return plan


def _estimate(plan: _Plan, settings: PrepareSettings, folder: Path) -> float:
    """Bytes of a plan, from a few of its pictures, evenly spaced by size."""
    area = {one: math.prod(one.size(plan.scale, settings)) for one in plan.pictures}
    ordered = sorted(plan.pictures, key=lambda one: (area[one], one.source.name))
    count = min(_SAMPLE, len(ordered))
    some = [ordered[(2 * index + 1) * len(ordered) // (2 * count)] for index in range(count)]
    sizes = _at_once(lambda one: _write(one, plan, settings, folder)["bytes"], some)
    return sum(sizes) * sum(area.values()) / sum(area[one] for one in some)


def _write_to_fit(
    plan: _Plan,
    settings: PrepareSettings,
    folders: Sequence[str | os.PathLike[str]],
    refused: Sequence[Refusal],
    folder: Path,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], int]:
    """Write the set, smaller and smaller until it fits; returns its manifest and its bytes."""
    most = settings.max_bytes
    for _ in range(_ROUNDS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        say(f"writing {len(plan.pictures)} pictures")
        entries = _at_once(
            lambda one, plan=plan: _write(one, plan, settings, folder), plan.pictures
        )
        for notice in licence_files(folders):
            shutil.copyfile(notice, folder / notice.name)
        manifest = _manifest(plan, settings, folders, refused, entries)
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
        if most is None or size <= most:
            return manifest, size
        say(f"{size / MIB:.2f} MiB are more than {most / MIB:.2f}")
        smaller = replace(plan, scale=plan.scale * math.sqrt(0.99 * most / size))
        if all(
            one.size(smaller.scale, settings) == one.size(plan.scale, settings)
            for one in plan.pictures
        ):
            break
        plan = smaller
    assert most is not None
    raise ValueError(
        f"max_bytes: the set has {size / MIB:.2f} MiB at its smallest, which is more than "
        f"{most / MIB:.2f} MiB; allow more, lower min_side ({settings.min_side}), or name fewer "
        "pictures"
    )


def _write(
    picture: Picture, plan: _Plan, settings: PrepareSettings, folder: Path
) -> dict[str, Any]:
    return write_picture(picture, picture.size(plan.scale, settings), plan.bits, folder)


def _manifest(
    plan: _Plan,
    settings: PrepareSettings,
    folders: Sequence[str | os.PathLike[str]],
    refused: Sequence[Refusal],
    entries: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "made_by": f"dkpn prepare, kpnops {metadata.version('kpnops')}",
        "settings": asdict(settings) | {"folders": [os.fspath(folder) for folder in folders]},
        "mantissa_bits": plan.bits,
        "scale": round(plan.scale, 4),
        "refused": [{"source": one.source, "reason": one.reason} for one in refused],
        "left_out": [one.source.relative for one in plan.left_out],
        "pictures": entries,
    }


def _at_once(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Do the same for several items at a time; the results are in their order."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(work, items))
