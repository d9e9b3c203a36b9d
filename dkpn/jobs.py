"""Which files photos become: decided, and checked, before anything is read or written."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dkpn.outputs import OUTPUT_SUFFIXES, output_suffix
from dkpn.photos.reading import STANDARD_INPUT


@dataclass(frozen=True)
class Job:
    """One photo and the files that it becomes.

    Args:
        photo: the file to read; ``-`` is standard input.
        output: the file to write; its suffix chooses the format.
        preview: the tone-mapped PNG to write, if any.
    """

    photo: Path
    output: Path
    preview: Path | None

    @property
    def targets(self) -> list[Path]:
        """The files to write."""
        return [self.output] if self.preview is None else [self.output, self.preview]


def plan_jobs(
    photos: Sequence[Path],
    output: Path,
    *,
    suffix: str = ".exr",
    preview: bool = True,
    overwrite: bool = False,
    skip_existing: bool = False,
) -> tuple[list[Job], int]:
    """Decide which files to write, before anything is read or written.

    Args:
        photos: files to read, from :func:`dkpn.photos.reading.photo_paths`.
        output: with a suffix: the file for a single photo. Without one: the folder that receives
            ``<stem><suffix>`` of each photo; of photos that differ in their suffix alone
            ``<stem>_<suffix of the photo><suffix>``.
        suffix: format of the files in a folder.
        preview: whether ``<stem>_preview.png`` lies beside.
        overwrite: let outputs replace files that exist; never one of ``photos``.
        skip_existing: leave out photos whose output exists, and keep previews that exist.

    Returns:
        One job for each photo to reconstruct, same order, and the number of photos left out.

    Raises:
        ValueError: unknown suffix, a file for several photos, a folder where a file is or the
            reverse, photos that would become the same file, or an output that is one of the photos.
        FileNotFoundError: the folder of an output file does not exist.
        FileExistsError: an output exists, and neither ``overwrite`` nor ``skip_existing`` is set.
    """
    if output.suffix and not output.is_dir():
        jobs = [_single_file(photos, output, preview)]
    else:
        jobs = _files_in_folder(photos, output, suffix, preview)
    _check_targets(jobs, photos)
    chosen = []
    for job in jobs:
        if skip_existing and job.output.exists():
            continue
        if skip_existing and job.preview is not None and job.preview.exists():
            job = replace(job, preview=None)
        for target in job.targets:
            if target.exists() and not overwrite:
                other = ", or --no-preview" if target == job.preview else ""
                raise FileExistsError(
                    f"{target}: exists already; allow that with --overwrite, or leave such photos "
                    f"out with --skip-existing{other}"
                )
        chosen.append(job)
    return chosen, len(jobs) - len(chosen)


def _check_targets(jobs: Sequence[Job], photos: Sequence[Path]) -> None:
    """Raise ValueError where a file would be written twice, or in the place of a photo."""
    inputs = _real(photos)
    written: dict[str, Job] = {}
    for job in jobs:
        for target in job.targets:
            if _real([target]) & inputs:
                raise ValueError(
                    f"{target}: this output would overwrite one of the photos; "
                    "choose another output folder or name"
                )
            if target.is_dir():
                raise ValueError(f"{target}: is a folder, expected a file to write")
            # Many file systems hold "A.exr" and "a.exr" for the same file.
            other = written.setdefault(str(target).casefold(), job)
            if other is not job:
                raise ValueError(
                    f"{other.photo} and {job.photo}: both would become {target.name}; rename one, "
                    "or reconstruct them into two folders"
                )


def _single_file(photos: Sequence[Path], output: Path, preview: bool) -> Job:
    output_suffix(output)
    if len(photos) != 1:
        raise ValueError(
            f"{output}: one file cannot hold {len(photos)} photos; "
            "give a folder, which is a name without suffix"
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"{output}: the folder {output.parent} does not exist; create it first"
        )
    beside = output.with_name(f"{output.stem}_preview.png") if preview else None
    return Job(photos[0], output, beside)


def _files_in_folder(photos: Sequence[Path], output: Path, suffix: str, preview: bool) -> list[Job]:
    if suffix not in OUTPUT_SUFFIXES:
        raise ValueError(f"format: expected one of {', '.join(OUTPUT_SUFFIXES)}, got {suffix!r}")
    if output.exists() and not output.is_dir():
        raise ValueError(
            f"{output}: is a file, expected a folder; a file to write ends in {suffix}"
        )
    stems = ["stdin" if str(photo) == STANDARD_INPUT else photo.stem for photo in photos]
    names: dict[str, set[str]] = {}
    for photo, stem in zip(photos, stems, strict=True):
        names.setdefault(stem.casefold(), set()).add(photo.suffix.casefold())
    inputs = _real(photos)
    jobs = []
    for photo, stem in zip(photos, stems, strict=True):
        # A photo that a camera saved in two formats; or one, and the result of an earlier run.
        if len(names[stem.casefold()]) > 1 and not _real([output / f"{stem}{suffix}"]) & inputs:
            stem = f"{stem}_{photo.suffix[1:]}"
        beside = output / f"{stem}_preview.png" if preview else None
        jobs.append(Job(photo, output / f"{stem}{suffix}", beside))
    return jobs


def _real(paths: Sequence[Path]) -> set[str]:
    return {os.path.realpath(path) for path in paths}
