"""The evaluation protocol: how a reconstruction is judged, the same way for every method.

Each method sees the same 8-bit photo at full resolution (:func:`dkpn.data.make_evaluation_pair`, or
:func:`dkpn.pairs.own_pairs`), and its result is measured in PU21-PSNR in four columns: after one
fitted gain; after the gain and the camera-response correction (``+CRF``); and both on the clipped
pixels alone, where range has to be invented. :mod:`dkpn.columns` has more of them. Two reference
rows are always there. *LDR* is the input decoded as sRGB. *camera oracle* is the input decoded with
its camera's true response curve: what inverts the camera perfectly and recovers nothing, so that
range has been recovered only by what passes it. A user's own pairs have no such row, since their
cameras are not known.

References:
    Eilertsen, Hajisharif, Hanji, Tsirikoglou, Mantiuk and Unger, How to cheat with metrics in
    single-image HDR reconstruction, ICCV Workshops 2021.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dkpn.camera import inverse_response_curve
from dkpn.color import srgb_to_linear
from dkpn.columns import ALWAYS, DEFAULT, check_columns, score
from dkpn.data import EvaluationPair, evaluation_pairs
from dkpn.hdr_io import write_atomically
from dkpn.infer import encoded_batch, in_layout_of
from dkpn.metrics import clipped_pixels, crf_correct, fit_gain
from dkpn.pairs import OwnPair, SavedResults
from dkpn.report import CAMERA_ORACLE, LDR, Evaluation, Measurement
from dkpn.resources import UNKNOWN, Cost, measured

if TYPE_CHECKING:
    from dkpn.model import DKPN

Method = Callable[[np.ndarray], np.ndarray]
"""From a photo, (H, W, 3) uint8, to its reconstruction, (H, W, 3) float32, linear, of any scale."""

Pair = EvaluationPair | OwnPair


def evaluate(
    data: str | os.PathLike[str] | Iterable[Pair],
    methods: Mapping[str, Method],
    *,
    results: Mapping[str, SavedResults] | None = None,
    metrics: Sequence[str] = DEFAULT,
    save_inputs: str | os.PathLike[str] | None = None,
    progress: Callable[[Pair], object] | None = None,
) -> Evaluation:
    """Measure methods on HDR images by the protocol, beside the reference rows.

    Args:
        data: folder of .hdr and .exr images, or pairs made of other images, either all by
            :func:`dkpn.data.evaluation_pairs` or all by :func:`dkpn.pairs.own_pairs`.
        methods: the methods by name; each is called once an image with a fresh copy of the input.
        results: results that other methods have written to files, by name of the method.
        metrics: the columns that the tables show, keys of :data:`dkpn.columns.COLUMNS`; those of
            :data:`dkpn.columns.ALWAYS` are measured in any case.
        save_inputs: folder, created if absent, that receives the JPEG file of each image under the
            image's stem, for programs that run on their own.
        progress: called with each pair when it has been measured.

    Returns:
        The measurements.

    Raises:
        FileNotFoundError: there is no such folder, or no result for an image.
        ModuleNotFoundError: a metric needs a package that is not installed.
        ValueError: no images, two of one name, pairs of both kinds, a method named like another or
            a reference row, no such metric, or a result of another shape or with NaN or infinity in
            it, or one that no gain can be fitted to; the message names the image and the method.
        TypeError: a result that is not a floating-point numpy array.
    """
    results = {} if results is None else results
    _check_names([*methods, *results])
    check_columns(tuple(metrics))
    columns = tuple(dict.fromkeys((*ALWAYS, *metrics)))
    pairs = evaluation_pairs(data) if isinstance(data, str | os.PathLike) else data
    folder = None if save_inputs is None else Path(save_inputs)
    measurements: list[Measurement] = []
    names: dict[str, bool] = {}  # of the images; whether the camera is known
    for pair in pairs:
        if pair.name in names:
            raise ValueError(f"data: two images are named {pair.name!r}; rename one of them")
        names[pair.name] = isinstance(pair, EvaluationPair)
        if len(set(names.values())) > 1:
            raise ValueError(
                f"data: {pair.name!r} is a pair of another kind than those before it; evaluate "
                "pairs with and without a known camera apart"
            )
        if folder is not None:
            _save_input(pair, folder)
        measurements += _measure_all(pair, methods, results, columns)
        if progress is not None:
            progress(pair)
    if not measurements:
        raise ValueError("data: expected at least one image, got none")
    references = (LDR, CAMERA_ORACLE) if all(names.values()) else (LDR,)
    return Evaluation(tuple(measurements), (*references, *methods, *results), tuple(metrics))


def preliminary_only(model: "DKPN") -> Method:
    """Return the method that stops at a network's preliminary result: its curve, without filters.

    Args:
        model: the network.

    Returns:
        The method.
    """

    @torch.inference_mode()
    def method(photo: np.ndarray) -> np.ndarray:
        image = encoded_batch(photo).to(next(model.parameters()).device)
        log_radiance = model.preliminary(image, model.pool(image))
        return in_layout_of(photo, log_radiance.exp())

    return method


def _check_names(names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if name in (LDR, CAMERA_ORACLE):
            raise ValueError(f"methods: {name!r} is the name of a reference row; choose another")
        if name in names[:index]:
            raise ValueError(f"methods: two are named {name!r}; choose another name for one")


def _save_input(pair: Pair, folder: Path) -> None:
    if isinstance(pair, OwnPair):
        raise ValueError("save_inputs: the inputs of own pairs are files already; leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{pair.name}.jpg", lambda path: path.write_bytes(pair.jpeg))


def _references(pair: Pair) -> dict[str, Method]:
    def decode_srgb(photo: np.ndarray) -> np.ndarray:
        return srgb_to_linear(torch.from_numpy(photo) / 255).numpy()

    if isinstance(pair, OwnPair):
        return {LDR: decode_srgb}
    camera = pair.camera

    def decode_camera(photo: np.ndarray) -> np.ndarray:
        return inverse_response_curve(torch.from_numpy(photo) / 255, camera).numpy()

    return {LDR: decode_srgb, CAMERA_ORACLE: decode_camera}


def _measure_all(
    pair: Pair,
    methods: Mapping[str, Method],
    results: Mapping[str, SavedResults],
    columns: Sequence[str],
) -> list[Measurement]:
    """Measure all methods on one image."""
    clipped = clipped_pixels(pair.input)
    rows = []
    for name, method in (_references(pair) | dict(methods)).items():
        where = f"image {pair.name!r}, method {name!r}"
        result, cost = measured(partial(method, pair.input.copy()))
        rows.append(_measure(pair, name, where, result, cost, clipped, columns))
    for name, saved in results.items():
        result = saved.read(pair.name)
        where = f"{saved.files[pair.name]}, image {pair.name!r}, method {name!r}"
        rows.append(_measure(pair, name, where, result, UNKNOWN, clipped, columns))
    return rows


def _measure(
    pair: Pair,
    name: str,
    where: str,
    result: np.ndarray,
    cost: Cost,
    clipped: np.ndarray,
    columns: Sequence[str],
) -> Measurement:
    _check_result(result, pair, where)
    result = result.astype(np.float64)
    try:
        factor = fit_gain(result, pair.target, pair.input)
        gained = result * factor
        corrected = crf_correct(gained, pair.target)
        scores = {
            column: score(column, gained, corrected, pair.target, clipped) for column in columns
        }
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    own = isinstance(pair, OwnPair)
    return Measurement(
        image=pair.name,
        scene=pair.scene,
        method=name,
        curve="" if own else pair.camera.curve,
        jpeg_quality=math.nan if own else pair.camera.jpeg_quality,
        truth_scale=pair.scale if own else math.nan,
        clipped_fraction=float(clipped.mean()),
        gain_factor=factor,
        seconds=cost.seconds,
        memory=cost.memory,
        device_memory=cost.device_memory,
        scores=scores,
    )


def _check_result(result: np.ndarray, pair: Pair, where: str) -> None:
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
