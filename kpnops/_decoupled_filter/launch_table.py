"""Launch parameters that were measured to be faster than the heuristics, and how a launch finds
them.

``launch_table.json`` is written by ``python -m bench.tune`` and says where its entries come from.
An entry holds for one kernel and one class of calls (see ``class_of``), on the device it was
measured on and others of its architecture, and only where the heuristic gives what it was compared
with: a call for which the heuristic has reasons to differ, and a heuristic that has changed since,
keep it. Whatever is not in the table, and every other device, takes the heuristic.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from .call import Call

__all__ = ["PATH", "SCHEMA", "check_table", "class_of", "entries_for", "tuned"]

PATH = Path(__file__).with_name("launch_table.json")
SCHEMA = 1
# A class of channels begins at each of these; up to four, each number is a class of its own.
_CHANNEL_CLASSES = (64, 32, 16, 8, 5)
# Narrower images have tiles of their own, whose waste the heuristics weigh.
_WIDE = 128
_FIELDS = {"heuristic", "parameters", "milliseconds", "heuristic_milliseconds"}
# What an entry may set: fields of the dataclasses of launch.py and launch_band.py.
_PARAMETERS = {
    "rows",
    "pixels",
    "block_h",
    "block_w",
    "block_p",
    "block_n",
    "block_c",
    "ahead",
    "num_warps",
    "max_registers",
}
Config = TypeVar("Config")


class Entry(NamedTuple):
    """Launch parameters in place of those of a heuristic."""

    heuristic: Mapping[str, int | None]
    parameters: Mapping[str, int | None]  # that differ


def tuned(heuristic: Config, kernel: str, call: Call) -> Config:
    """The parameters of a launch: those of the table, or the heuristic's.

    Args:
        heuristic: what ``launch.py`` gives, a dataclass.
        kernel: name of the launcher, as the table has it.
        call: whose class and device are looked up.

    Returns:
        The heuristic with the table's values in place of its own.
    """
    entries = _entries_of(call.input.device)
    if not entries:
        return heuristic
    entry = entries.get(f"{kernel} {class_of(call)}")
    if entry is None or vars(heuristic) != entry.heuristic:
        return heuristic
    return replace(heuristic, **entry.parameters)  # type: ignore[type-var]


def class_of(call: Call) -> str:
    """The class of a call: taps, form, softmax, padding, channels, dtypes, layout, width, and what
    rows begin at multiples of."""
    rows, columns = call.window.kernel_size
    channels = call.channels_per_group
    least = next((least for least in _CHANNEL_CLASSES if channels >= least), channels)
    parts = [
        f"{rows}x{columns}",
        call.form,
        "softmax" if call.softmax else "plain",
        call.window.padding_mode,
        f"C{least}{'' if channels < _CHANNEL_CLASSES[-1] else '+'}",
        _dtype_class(call),
        _layout_class(call.input),
        f"W>{_WIDE}" if call.input.shape[3] > _WIDE else f"W<={_WIDE}",
        f"A{_alignment(call)}",
    ]
    return " ".join(parts)


def _dtype_class(call: Call) -> str:
    """Bytes of image, spatial and channel filter, and those of a sum: float16 is as bfloat16."""
    tensors = [call.input, call.spatial_filter]
    if call.channel_filter is not None:
        tensors.append(call.channel_filter)
    sizes = "/".join(str(8 * tensor.element_size()) for tensor in tensors)
    return f"{sizes}:{8 * call.sum_dtype.itemsize}"


def _layout_class(tensor: torch.Tensor) -> str:
    """Along which axis neighbours lie side by side."""
    if tensor.stride(3) == 1:
        return "rows"
    return "channels" if tensor.stride(1) == 1 else "strided"


def _alignment(call: Call) -> int:
    """What rows of every tensor begin at multiples of: 16 or 2 pixels, or 1."""
    alignment = math.gcd(16, call.input.shape[3])
    for tensor in (call.input, call.spatial_filter, call.channel_filter):
        if tensor is not None and tensor.dim() == 4:
            *strides, last = tensor.stride()
            alignment = math.gcd(alignment, *strides) if last == 1 else 1
    return alignment if alignment in (16, 1) else 2


def entries_for(table: Mapping[str, Any], device_name: str, architecture: str) -> dict[str, Entry]:
    """The parameters that a table has for a device.

    Args:
        table: as ``check_table`` accepts it.
        device_name: such as "NVIDIA H200".
        architecture: such as "sm_90", for a device that has no entries of its own.

    Returns:
        Entries by kernel and class; those that keep the heuristic are left out.
    """
    devices = table["devices"]
    found = devices.get(device_name)
    if found is None:
        of_architecture = (
            device for device in devices.values() if device["architecture"] == architecture
        )
        found = next(of_architecture, {"entries": {}})
    return {
        key: Entry(entry["heuristic"], entry["parameters"])
        for key, entry in found["entries"].items()
        if entry["parameters"] is not None
    }


@functools.cache
def _entries_of(device: torch.device) -> Mapping[str, Entry]:
    """The entries of a tensor's device; none off a GPU."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return entries_for(_table(), properties.name, architecture_of(properties))


def architecture_of(properties: Any) -> str:
    """Such as "sm_90" on NVIDIA, "gfx942" on AMD."""
    name = getattr(properties, "gcnArchName", None)
    if torch.version.hip is not None and name:
        return name.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def _table() -> dict[str, Any]:
    table = json.loads(PATH.read_text(encoding="utf-8"))
    check_table(table)
    return table


def check_table(table: Any) -> None:
    """Refuse what is no launch table.

    Raises:
        ValueError: names what is wrong.
    """
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise ValueError(f"launch table: expected schema {SCHEMA}")
    provenance = {"architecture", "versions", "driver", "date", "commit", "entries"}
    for name, device in table["devices"].items():
        if device.keys() != provenance:
            raise ValueError(f"launch table, {name}: expected {sorted(provenance)}")
        for key, entry in device["entries"].items():
            if entry.keys() != _FIELDS:
                raise ValueError(f"launch table, {name}, {key}: got {sorted(entry)}")
            for field, value in [*entry["heuristic"].items(), *(entry["parameters"] or {}).items()]:
                if field not in _PARAMETERS or not isinstance(value, (int, type(None))):
                    raise ValueError(f"launch table, {name}, {key}: {field}={value!r}")
