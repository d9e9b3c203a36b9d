"""The launch table: who finds which entry, and that the heuristic is what remains."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from kpnops._decoupled_filter import launch_table
from kpnops._decoupled_filter.call import Call
from kpnops._decoupled_filter.geometry import Window
from kpnops._decoupled_filter.launch import TileLaunch
from kpnops._decoupled_filter.launch_table import (
    Entry,
    architecture_of,
    check_table,
    class_of,
    entries_for,
    tuned,
)

HEURISTIC = TileLaunch(block_h=4, block_w=128, num_warps=4, max_registers=255, rows=2)


def call(
    shape=(1, 3, 64, 256),
    kernel_size=(5, 5),
    dtypes=(torch.float32, torch.float32),
    groups=1,
    layout=torch.contiguous_format,
    softmax=False,
    padding_mode="zeros",
):
    B, _, H, W = shape
    input_dtype, filter_dtype = dtypes
    taps = groups * kernel_size[0] * kernel_size[1]
    image = torch.empty(shape, dtype=input_dtype, device="meta", memory_format=layout)
    spatial = torch.empty((B, taps, H, W), dtype=filter_dtype, device="meta")
    gains = torch.empty(shape, dtype=filter_dtype, device="meta")
    return Call(
        image, spatial, gains, Window(kernel_size, padding_mode=padding_mode), "mul", softmax
    )


def entry(parameters):
    return {
        "heuristic": asdict(HEURISTIC),
        "parameters": parameters,
        "milliseconds": 1.0,
        "heuristic_milliseconds": 1.1,
    }


def table(**devices):
    return {
        "schema": 1,
        "devices": {
            name: {
                "architecture": architecture,
                "versions": {"torch": "2.11.0"},
                "driver": "580",
                "date": "2026-01-31T12:00:00+00:00",
                "commit": "abc1234",
                "entries": entries,
            }
            for name, (architecture, entries) in devices.items()
        },
    }


def test_shipped_table_is_valid():
    check_table(json.loads(launch_table.PATH.read_text(encoding="utf-8")))


def test_entry_replaces_what_it_names(monkeypatch):
    key = f"tile_forward {class_of(call())}"
    found = {key: Entry(asdict(HEURISTIC), {"rows": 4, "max_registers": None})}
    monkeypatch.setattr(launch_table, "_entries_of", lambda device: found)
    expected = replace(HEURISTIC, rows=4, max_registers=None)
    assert tuned(HEURISTIC, "tile_forward", call()) == expected
    assert tuned(HEURISTIC, "tile_input", call()) is HEURISTIC
    assert tuned(HEURISTIC, "tile_forward", call(kernel_size=(3, 3))) is HEURISTIC
    # Where the heuristic gives something else it has a reason, which the sweep did not see.
    other = replace(HEURISTIC, max_registers=168)
    assert tuned(other, "tile_forward", call()) is other


def test_without_a_gpu_the_heuristic_holds():
    assert tuned(HEURISTIC, "tile_forward", call()) is HEURISTIC


def test_class_of_a_call_in_words():
    assert class_of(call()) == "5x5 pixel plain zeros C3 32/32/32:32 rows W>128 A16"


@pytest.mark.parametrize(
    "other",
    [
        call(kernel_size=(5, 3)),
        call(shape=(1, 4, 64, 256)),
        call(shape=(1, 3, 64, 128)),
        call(shape=(1, 3, 64, 250)),
        call(shape=(1, 3, 64, 251)),
        call(dtypes=(torch.float32, torch.bfloat16)),
        call(dtypes=(torch.float64, torch.float64)),
        replace(call(), double=True),
        call(layout=torch.channels_last),
        call(softmax=True),
        call(padding_mode="reflect"),
        replace(call(), channel_filter=None),
    ],
)
def test_calls_of_other_classes_differ(other):
    assert class_of(other) != class_of(call())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (call(), call(shape=(2, 3, 900, 784))),
        (call(shape=(1, 3, 64, 250)), call(shape=(1, 3, 60, 252))),
        (call(shape=(1, 64, 64, 256)), call(shape=(1, 200, 64, 256))),
        (call(shape=(1, 64, 64, 256), groups=4), call(shape=(1, 16, 64, 256))),
        (
            call(dtypes=(torch.float16, torch.float16)),
            call(dtypes=(torch.bfloat16, torch.bfloat16)),
        ),
    ],
)
def test_calls_of_one_class_agree(one, other):
    assert class_of(one) == class_of(other)


def test_entries_are_those_of_the_device_or_of_its_architecture():
    two = table(
        **{
            "NVIDIA H200": ("sm_90", {"a": entry({"rows": 1}), "b": entry(None)}),
            "NVIDIA H100": ("sm_90", {"a": entry({"rows": 2})}),
        }
    )
    check_table(two)
    assert entries_for(two, "NVIDIA H100", "sm_90") == {"a": Entry(asdict(HEURISTIC), {"rows": 2})}
    # What keeps the heuristic was measured too, and is no entry for a launch.
    one = {"a": Entry(asdict(HEURISTIC), {"rows": 1})}
    assert entries_for(two, "NVIDIA H200", "sm_90") == one
    assert entries_for(two, "NVIDIA H800", "sm_90") == one
    assert entries_for(two, "NVIDIA A100", "sm_80") == {}


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"schema": 2, "devices": {}},
        {"schema": 1, "devices": {"a": {"entries": {}}}},
        table(a=("sm_90", {"k": {"parameters": None}})),
        table(a=("sm_90", {"k": entry({"rows": "2"})})),
        table(a=("sm_90", {"k": entry({"speed": 2})})),
    ],
)
def test_other_tables_are_refused(wrong):
    with pytest.raises(ValueError, match="launch table"):
        check_table(wrong)


def test_architecture_is_named_as_compilers_name_it():
    assert architecture_of(SimpleNamespace(major=9, minor=0)) == "sm_90"


@pytest.mark.gpu
def test_lookup_on_a_gpu_reads_the_shipped_table():
    properties = torch.cuda.get_device_properties("cuda")
    shipped = json.loads(launch_table.PATH.read_text(encoding="utf-8"))
    expected = entries_for(shipped, properties.name, architecture_of(properties))
    assert launch_table._entries_of(torch.device("cuda", 0)) == expected
