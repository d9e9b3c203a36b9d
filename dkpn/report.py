"""What an evaluation has measured: means, intervals over scenes, tables and the CSV file.

References:
    Hanji et al. 2022 (see :func:`dkpn.metrics.crf_correct`): below 3.5 dB, a difference need not be
    visible.
"""

import csv
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from dkpn.columns import COLUMNS, DEFAULT
from dkpn.hdr_io import write_atomically

LDR = "LDR"
CAMERA_ORACLE = "camera oracle"

_RESAMPLES = 10_000
_CONFIDENCE = 0.95
_COSTS = {
    "seconds": ("median s", ".3f"),
    "memory": ("median MiB", ".0f"),
    "device_memory": ("median GPU MiB", ".0f"),
}


@dataclass(frozen=True)
class Measurement:
    """One method on one image: one row of the CSV file. NaN means that there is no such number.

    Args:
        image: name of the image.
        scene: scene that it shows.
        method: name of the method.
        curve: family of the camera's response curve; "" where the camera is not known.
        jpeg_quality: of the input; NaN where it is not known.
        truth_scale: what a user's own truth was multiplied by; NaN for a truth of known scale.
        clipped_fraction: share of the pixels that count as clipped.
        gain_factor: the fitted gain.
        seconds: time of the method on this image; NaN for results read from files.
        memory: MiB of memory that it took, see :class:`dkpn.resources.Cost`.
        device_memory: MiB of a GPU's memory that it took.
        scores: the columns measured, keys of :data:`dkpn.columns.COLUMNS`; NaN where an image has
            no clipped pixels.
    """

    image: str
    scene: str
    method: str
    curve: str
    jpeg_quality: float
    truth_scale: float
    clipped_fraction: float
    gain_factor: float
    seconds: float
    memory: float
    device_memory: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """A mean difference, in the unit of its column, and its 95 % interval; NaN: there is none.

    Args:
        mean: over the images.
        low: lower bound.
        high: upper bound.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`dkpn.evaluate.evaluate`.

    Args:
        measurements: one for each image and method, image by image.
        methods: the names of the methods, the reference rows first.
        columns: those that the tables show, keys of :data:`dkpn.columns.COLUMNS`.
    """

    measurements: tuple[Measurement, ...]
    methods: tuple[str, ...]
    columns: tuple[str, ...] = DEFAULT

    def values(self, method: str, column: str) -> np.ndarray:
        """Return one number of each image, in the order of the images.

        Args:
            method: name of a method.
            column: a column that was measured, or a numeric attribute of :class:`Measurement`.

        Returns:
            (images,) float64.

        Raises:
            ValueError: no such method, or a column that was not measured.
        """
        if method not in self.methods:
            raise ValueError(f"method: expected one of {', '.join(self.methods)}, got {method!r}")
        rows = [row for row in self.measurements if row.method == method]
        if column not in COLUMNS:
            return np.array([getattr(row, column) for row in rows], dtype=np.float64)
        if column not in rows[0].scores:
            raise ValueError(
                f"column: {column!r} was not measured, only {', '.join(rows[0].scores)}; "
                "ask for it with metrics"
            )
        return np.array([row.scores[column] for row in rows], dtype=np.float64)

    def mean(self, method: str, column: str) -> float:
        """Return the mean of a column over the images that have a value in it (NaN if none has)."""
        values = self.values(method, column)
        values = values[~np.isnan(values)]
        return float(values.mean()) if values.size else math.nan

    def over(self, method: str, column: str, reference: str = LDR) -> Difference:
        """Return by how much a method passes another, with a bootstrap interval over scenes.

        Scenes are drawn with replacement, each with all of its images, since crops of one scene are
        not independent; the difference is taken image by image.

        Args:
            method: name of a method.
            column: a column that was measured.
            reference: name of the method to compare with.

        Returns:
            The mean difference over the images and its 95 % interval (NaN for a single scene).
        """
        difference = self.values(method, column) - self.values(reference, column)
        scenes = np.array([row.scene for row in self.measurements if row.method == method])
        known = ~np.isnan(difference)
        return bootstrap_over_scenes(difference[known], scenes[known])

    def table(self) -> str:
        """Return the means, and the differences to the LDR row and between methods, as Markdown."""
        others = [method for method in self.methods if method != LDR]
        images = sum(row.method == LDR for row in self.measurements)
        scenes = len({row.scene for row in self.measurements})
        counted = f"{_count(images, 'image')} of {_count(scenes, 'scene')}"
        parts = [f"The mean of {counted}.", self._legend(), self._means()]
        interval = "with its 95 % interval over scenes"
        if scenes == 1:
            interval = "of a single scene, so without an interval over scenes"
        compared = [(method, method, LDR) for method in others]
        parts += [
            f"Difference to the LDR row, {interval}",
            self._differences(compared),
        ]
        pairs = [(f"{b} - {a}", b, a) for a, b in combinations(others, 2)]
        if pairs:
            parts += ["Differences between methods, likewise", self._differences(pairs)]
        return "\n\n".join(parts)

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the measurements, one line each; a value that does not exist is an empty cell.

        Args:
            path: file to write; its folder exists, and an existing file is replaced.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        rows = [{**vars(row), **row.scores} for row in self.measurements]
        for row in rows:
            del row["scores"]

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                for row in rows:
                    writer.writerow({k: "" if v != v else v for k, v in row.items()})

        write_atomically(Path(path), write)

    def _legend(self) -> str:
        by_unit: dict[str, list[str]] = {}
        for name in self.columns:
            by_unit.setdefault(COLUMNS[name].unit, []).append(COLUMNS[name].heading)
        lines = [f"{', '.join(headings)}: {unit}." for unit, headings in by_unit.items()]
        if CAMERA_ORACLE not in self.methods:
            lines.append(
                f"There is no {CAMERA_ORACLE} row, since the cameras of these pairs are not known. "
                f"Each truth was scaled so that the gain of the {LDR} row is 1."
            )
        return "\n".join(lines)

    def _means(self) -> str:
        costs = [
            name
            for name in _COSTS
            if not all(np.isnan(self.values(method, name)).all() for method in self.methods)
        ]
        headings = [COLUMNS[name].heading for name in self.columns]
        rows = [["method", *headings, *(_COSTS[name][0] for name in costs)]]
        for method in self.methods:
            cells = [
                _number(self.mean(method, name), f".{COLUMNS[name].decimals}f")
                for name in self.columns
            ]
            for name in costs:
                cells.append(_number(float(np.median(self.values(method, name))), _COSTS[name][1]))
            rows.append([method, *cells])
        return _markdown(rows)

    def _differences(self, compared: Iterable[tuple[str, str, str]]) -> str:
        rows = [["method", *(COLUMNS[name].heading for name in self.columns)]]
        for label, method, reference in compared:
            cells = [
                _interval(self.over(method, name, reference), COLUMNS[name].decimals)
                for name in self.columns
            ]
            rows.append([label, *cells])
        return _markdown(rows)


def bootstrap_over_scenes(values: np.ndarray, scenes: np.ndarray) -> Difference:
    """Return the mean of values and its 95 % interval, resampling whole scenes.

    Args:
        values: (images,) float64.
        scenes: (images,) names of the scenes.

    Returns:
        Mean over the images, and the percentile interval of 10,000 resamples from a fixed seed; NaN
        bounds for fewer than two scenes.
    """
    if values.size == 0:
        return Difference(math.nan, math.nan, math.nan)
    names, scene_of_image = np.unique(scenes, return_inverse=True)
    mean = float(values.mean())
    if len(names) < 2:
        return Difference(mean, math.nan, math.nan)
    sums = np.bincount(scene_of_image, weights=values)
    counts = np.bincount(scene_of_image)
    drawn = np.random.default_rng(0).integers(len(names), size=(_RESAMPLES, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(mean, float(low), float(high))


def _number(value: float, format_spec: str) -> str:
    return "" if math.isnan(value) else format(value, format_spec)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _interval(difference: Difference, decimals: int) -> str:
    spec = f"+.{decimals}f"
    if math.isnan(difference.low):
        return _number(difference.mean, spec)
    return f"{difference.mean:{spec}} [{difference.low:{spec}}, {difference.high:{spec}}]"


def _markdown(rows: list[list[str]]) -> str:
    """Align cells as a Markdown table whose first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    aligned = [
        line(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = line(
        "-" * width if column == 0 else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    )
    return "\n".join([aligned[0], rule, *aligned[1:]])
