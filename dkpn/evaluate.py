"""The evaluation protocol: how a reconstruction is judged, the same way for every method.

Each method sees the same 8-bit JPEG at full resolution (:func:`dkpn.data.make_evaluation_pair`),
and its result is measured in PU21-PSNR in four columns: after one fitted gain; after the gain and
the camera-response correction (``+CRF``); and both on the clipped pixels alone, where range has to
be invented. Two reference rows are always there. *LDR* is the input decoded as sRGB. *camera
oracle* is the input decoded with its camera's true response curve: what inverts the camera
perfectly and recovers nothing, so that range has been recovered only by what passes it.

References:
    Eilertsen, Hajisharif, Hanji, Tsirikoglou, Mantiuk and Unger, How to cheat with metrics in
    single-image HDR reconstruction, ICCV Workshops 2021. Hanji et al. 2022 (see
    :func:`dkpn.metrics.crf_correct`): below 3.5 dB, a difference need not be visible.
"""

import csv
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from dkpn.camera import CurveFamily, inverse_response_curve
from dkpn.color import srgb_to_linear
from dkpn.data import EvaluationPair, evaluation_pairs
from dkpn.hdr_io import write_atomically
from dkpn.metrics import clipped_pixels, crf_correct, fit_gain, mu_law_psnr, pu21_psnr

Method = Callable[[np.ndarray], np.ndarray]
"""From a photo, (H, W, 3) uint8, to its reconstruction, (H, W, 3) float32, linear, of any scale."""

LDR = "LDR"
CAMERA_ORACLE = "camera oracle"
COLUMNS = {"gain": "gain", "crf": "+CRF", "clipped": "clipped", "clipped_crf": "clipped +CRF"}
"""The four judged columns: attribute of :class:`Measurement` and heading."""

_RESAMPLES = 10_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measurement:
    """One method on one image: one row of the CSV. PSNR is in dB; NaN means that there is none.

    Args:
        image: name of the image.
        scene: scene that it shows.
        method: name of the method.
        curve: family of the camera's response curve.
        jpeg_quality: of the input.
        clipped_fraction: share of the pixels that count as clipped.
        gain_factor: the fitted gain.
        gain: PU21-PSNR after the gain.
        crf: PU21-PSNR after the gain and the camera-response correction.
        clipped: as ``gain``, on clipped pixels; NaN where there are none.
        clipped_crf: as ``crf``, on clipped pixels; NaN where there are none.
        mu_law: µ-law PSNR after the gain, for comparison with older tables.
        seconds: time of the method on this image.
    """

    image: str
    scene: str
    method: str
    curve: CurveFamily
    jpeg_quality: int
    clipped_fraction: float
    gain_factor: float
    gain: float
    crf: float
    clipped: float
    clipped_crf: float
    mu_law: float
    seconds: float


@dataclass(frozen=True)
class Difference:
    """A mean difference in dB and its 95 % interval, NaN where there is none.

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
    """The result of :func:`evaluate`.

    Args:
        measurements: one for each image and method, image by image.
        methods: the names of the methods, the two reference rows first.
    """

    measurements: tuple[Measurement, ...]
    methods: tuple[str, ...]

    def values(self, method: str, column: str) -> np.ndarray:
        """Return one number of each image, in the order of the images.

        Args:
            method: name of a method.
            column: a numeric attribute of :class:`Measurement`.

        Returns:
            (images,) float64.

        Raises:
            ValueError: no such method.
        """
        if method not in self.methods:
            raise ValueError(f"method: expected one of {', '.join(self.methods)}, got {method!r}")
        chosen = [getattr(row, column) for row in self.measurements if row.method == method]
        return np.array(chosen, dtype=np.float64)

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
            column: a key of :data:`COLUMNS`.
            reference: name of the method to compare with.

        Returns:
            The mean difference over the images and its 95 % interval (NaN for a single scene).
        """
        difference = self.values(method, column) - self.values(reference, column)
        scenes = np.array([row.scene for row in self.measurements if row.method == method])
        known = ~np.isnan(difference)
        return bootstrap_over_scenes(difference[known], scenes[known])

    def table(self) -> str:
        """Return the means and the differences to the LDR row as two Markdown tables."""
        images = sum(row.method == self.methods[0] for row in self.measurements)
        scenes = len({row.scene for row in self.measurements})
        means, differences = [], []
        for method in self.methods:
            cells = [_number(self.mean(method, column), ".2f") for column in COLUMNS]
            seconds = float(np.median(self.values(method, "seconds")))
            means.append([method, *cells, _number(seconds, ".3f")])
            if method != LDR:
                over = [self.over(method, column) for column in COLUMNS]
                differences.append([method, *(_interval(one) for one in over)])
        headings = list(COLUMNS.values())
        return "\n".join(
            (
                f"PU21-PSNR in dB, mean of {images} images of {scenes} scenes",
                "",
                _markdown([["method", *headings, "median s"], *means]),
                "",
                "Difference to the LDR row in dB, with its 95 % interval over scenes",
                "",
                _markdown([["method", *headings], *differences]),
            )
        )

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the measurements, one line each; a value that does not exist is an empty cell.

        Args:
            path: file to write; its folder exists, and an existing file is replaced.

        Raises:
            FileNotFoundError: the folder does not exist.
        """

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Measurement)])
                writer.writeheader()
                for row in self.measurements:
                    writer.writerow({k: "" if v != v else v for k, v in asdict(row).items()})

        write_atomically(Path(path), write)


def evaluate(
    data: str | os.PathLike[str] | Iterable[EvaluationPair],
    methods: Mapping[str, Method],
    *,
    save_inputs: str | os.PathLike[str] | None = None,
    progress: Callable[[EvaluationPair], object] | None = None,
) -> Evaluation:
    """Measure methods on HDR images by the protocol, beside the two reference rows.

    Args:
        data: folder of .hdr and .exr images, or pairs made of other images.
        methods: the methods by name; each is called once an image with a fresh copy of the input.
        save_inputs: folder, created if absent, that receives the JPEG file of each image under the
            image's stem, for programs that run on their own.
        progress: called with each pair when it has been measured.

    Returns:
        The measurements.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no images, two of one name, a method named like a reference row, or a result of
            another shape or with NaN or infinity in it, or one that no gain can be fitted to; the
            message names the image and the method.
        TypeError: a result that is not a floating-point numpy array.
    """
    for name in (LDR, CAMERA_ORACLE):
        if name in methods:
            raise ValueError(f"methods: {name!r} is the name of a reference row; choose another")
    pairs = evaluation_pairs(data) if isinstance(data, str | os.PathLike) else data
    folder = None if save_inputs is None else Path(save_inputs)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    measurements: list[Measurement] = []
    names: set[str] = set()
    for pair in pairs:
        if pair.name in names:
            raise ValueError(f"data: two images are named {pair.name!r}; rename one of them")
        names.add(pair.name)
        if folder is not None:
            data_of_file = pair.jpeg
            write_atomically(
                folder / f"{pair.name}.jpg", lambda path, data=data_of_file: path.write_bytes(data)
            )
        clipped = clipped_pixels(pair.input)
        for name, method in (_references(pair) | dict(methods)).items():
            measurements.append(_measure(pair, name, method, clipped))
        if progress is not None:
            progress(pair)
    if not measurements:
        raise ValueError("data: expected at least one image, got none")
    return Evaluation(tuple(measurements), (LDR, CAMERA_ORACLE, *methods))


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


def _references(pair: EvaluationPair) -> dict[str, Method]:
    def decode_srgb(photo: np.ndarray) -> np.ndarray:
        return srgb_to_linear(torch.from_numpy(photo) / 255).numpy()

    def decode_camera(photo: np.ndarray) -> np.ndarray:
        return inverse_response_curve(torch.from_numpy(photo) / 255, pair.camera).numpy()

    return {LDR: decode_srgb, CAMERA_ORACLE: decode_camera}


def _measure(pair: EvaluationPair, name: str, method: Method, clipped: np.ndarray) -> Measurement:
    start = time.perf_counter()
    result = method(pair.input.copy())
    seconds = time.perf_counter() - start
    _check_result(result, pair, name)
    result = result.astype(np.float64)
    try:
        factor = fit_gain(result, pair.target, pair.input)
    except ValueError as error:
        raise ValueError(f"image {pair.name!r}, method {name!r}: {error}") from error
    gained = result * factor
    corrected = crf_correct(gained, pair.target)
    return Measurement(
        image=pair.name,
        scene=pair.scene,
        method=name,
        curve=pair.camera.curve,
        jpeg_quality=pair.camera.jpeg_quality,
        clipped_fraction=float(clipped.mean()),
        gain_factor=factor,
        gain=pu21_psnr(gained, pair.target),
        crf=pu21_psnr(corrected, pair.target),
        clipped=pu21_psnr(gained, pair.target, clipped),
        clipped_crf=pu21_psnr(corrected, pair.target, clipped),
        mu_law=mu_law_psnr(gained, pair.target),
        seconds=seconds,
    )


def _check_result(result: np.ndarray, pair: EvaluationPair, name: str) -> None:
    where = f"image {pair.name!r}, method {name!r}"
    if not isinstance(result, np.ndarray) or not np.issubdtype(result.dtype, np.floating):
        kind = result.dtype if isinstance(result, np.ndarray) else type(result).__name__
        raise TypeError(f"{where}: expected a floating-point numpy array, got {kind}")
    if result.shape != pair.target.shape:
        raise ValueError(f"{where}: expected shape {pair.target.shape}, got {result.shape}")
    undefined = int(np.isnan(result).sum())
    infinite = int(np.isinf(result).sum())
    if undefined or infinite:
        raise ValueError(
            f"{where}: expected finite values, got {undefined} NaN and {infinite} infinite ones; "
            "they are never replaced"
        )


def _number(value: float, format_spec: str) -> str:
    return "" if math.isnan(value) else format(value, format_spec)


def _interval(difference: Difference) -> str:
    if math.isnan(difference.low):
        return _number(difference.mean, "+.2f")
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


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
