"""Every kind of case that a row can be of, and how a file holds it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from bench.cases import Case
from bench.head_cases import HeadCase
from bench.photo_cases import PHOTO_DTYPE, PhotoCase
from bench.schema import parse
from bench.step_cases import MODEL, StepCase

AnyCase = Case | HeadCase | StepCase | PhotoCase
_KINDS: dict[str, type] = {kind.__name__: kind for kind in (Case, HeadCase, StepCase, PhotoCase)}


@dataclass(frozen=True)
class _Filter:
    shape: tuple[int, int, int, int]
    kernel_size: int
    form: str
    layout: str
    normalize: str | None


@dataclass(frozen=True)
class _Head:
    shape: tuple[int, int, int, int]
    kernel_size: int
    features: int
    precision: str


@dataclass(frozen=True)
class _Network:  # a training step, or a reconstruction where the data are a photo's
    shape: tuple[int, int, int, int]
    kernel_size: int
    model: str


def case_to_json(case: AnyCase) -> dict[str, Any]:
    """Return the case as a results file holds it, without its data type."""
    shape = [case.batch, case.channels, case.height, case.width]
    data: dict[str, Any] = {"shape": shape, "kernel_size": case.kernel_size}
    if isinstance(case, HeadCase):
        return data | {"features": case.features, "precision": case.precision}
    if isinstance(case, StepCase | PhotoCase):
        return data | {"model": MODEL}
    return data | {
        "form": case.channel_filter,
        "layout": case.layout,
        "normalize": case.normalize,
    }


def case_from_json(data: Any, dtype: str, where: str) -> AnyCase:
    """Return the case that `case_to_json` wrote; its fields tell of which kind it is.

    Args:
        data: parsed JSON.
        dtype: the row's data types in one word.
        where: how an error calls it.

    Returns:
        The case.

    Raises:
        ValueError: it is not of the schema; names the field.
    """
    kind = _Filter
    if isinstance(data, dict) and "features" in data:
        kind = _Head
    elif isinstance(data, dict) and "model" in data:
        kind = _Network
    in_file = parse(kind, data, where + ".case")
    batch, channels, height, width = in_file.shape
    try:
        if isinstance(in_file, _Head):
            return HeadCase(
                *in_file.shape, in_file.kernel_size, in_file.features, dtype, in_file.precision
            )
        if isinstance(in_file, _Network):
            if (channels, in_file.model) != (3, MODEL):
                raise ValueError(f"model: expected {MODEL!r} with 3 channels, got {data!r}")
            if dtype != PHOTO_DTYPE:
                return StepCase(batch, height, width, in_file.kernel_size, dtype)
            if in_file.kernel_size != PhotoCase.kernel_size:
                raise ValueError(f"kernel_size: expected {PhotoCase.kernel_size}, got {data!r}")
            return PhotoCase(batch, height, width)
        filters, _, image = dtype.partition("+")
        return Case(
            *in_file.shape,
            kernel_size=in_file.kernel_size,
            channel_filter=in_file.form,
            input_dtype=image or filters,
            filter_dtype=filters,
            layout=in_file.layout,
            normalize=in_file.normalize,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def case_to_request(case: AnyCase) -> dict[str, Any]:
    """Return the case with all fields, as one process tells another."""
    return {"kind": type(case).__name__} | dataclasses.asdict(case)


def case_from_request(data: dict[str, Any]) -> AnyCase:
    """Return the case that `case_to_request` told."""
    fields = dict(data)
    return _KINDS[fields.pop("kind")](**fields)
