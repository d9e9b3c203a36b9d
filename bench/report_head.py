"""The report's tables of the fused head and of the whole network."""

from bench.cases import FORWARD, FORWARD_BACKWARD
from bench.head_cases import HeadCase
from bench.head_goals import megabytes_beyond
from bench.head_providers import (
    COMPILED_HEAD_SLICES,
    COMPILED_HEAD_UNFOLD,
    PREDICT,
    STORED,
)
from bench.photo_cases import RECONSTRUCTION
from bench.photo_operations import FILES, INFER
from bench.results import Row, groups_of
from bench.step_cases import STEP
from bench.step_operations import STEP_FUSED, STEP_HEAD, STEP_NAIVE
from bench.text import (
    case_title,
    duration,
    duration_or_dash,
    markdown_table,
    number,
    share,
    time_ratio,
)

HEAD_HEADINGS = [
    "input, kernel size, features, precision",
    "fused",
    "quartiles",
    "of a copy",
    "our own unfused ÷ fused",
    "compiled PyTorch ÷ fused",
    "peak MiB: fused",
    "our own unfused",
    "compiled PyTorch",
    "MB beyond results and 4 bytes a pixel",
    "error ÷ budget",
    "commit",
]
STEP_HEADINGS = [
    "photo, kernel size",
    "filter by kpnops",
    "naive filter",
    "fused head",
    "naive ÷ kpnops",
    "fused head ÷ kpnops",
    "peak MiB: kpnops",
    "naive",
    "fused head",
    "commit",
]
PHOTO_HEADINGS = [
    "photos of 8 bits",
    "infer: MP/s",
    "median",
    "quartiles",
    "peak MiB a MP",
    "files to .exr: MP/s",
    "error ÷ budget",
    "commit",
]


def head_sections(rows: list[Row]) -> list[str]:
    """Return the sections of the fused head and the network; nothing without their rows."""
    lines = []
    for pass_name in (FORWARD, FORWARD_BACKWARD):
        cells = [
            _head_cells(by_name)
            for by_name in _measured(rows, pass_name)
            if PREDICT in by_name and isinstance(by_name[PREDICT].case, HeadCase)
        ]
        if cells:
            title = f"## predict_filter, {pass_name}"
            lines += ["", title, "", *markdown_table(HEAD_HEADINGS, cells)]
    cells = [_step_cells(by_name) for by_name in _measured(rows, STEP) if STEP_FUSED in by_name]
    if cells:
        title = "## Training step of dkpn: forward, loss, backward, optimizer"
        lines += ["", title, "", *markdown_table(STEP_HEADINGS, cells)]
    cells = [_photo_cells(by) for by in _measured(rows, RECONSTRUCTION) if INFER in by]
    if cells:
        title = "## Reconstruction by dkpn, warm: `infer` in memory, and batches of files"
        lines += ["", title, "", *markdown_table(PHOTO_HEADINGS, cells)]
    return lines


def _measured(rows: list[Row], pass_name: str) -> list[dict[str, Row]]:
    """Return the measured rows of each group of a pass by their providers."""
    of_pass = [row for row in rows if row.pass_name == pass_name]
    return [
        {row.provider: row for row in group if row.milliseconds is not None}
        for group in groups_of(of_pass).values()
    ]


def _head_cells(by_name: dict[str, Row]) -> list[str]:
    ours, stored = by_name[PREDICT], by_name.get(STORED)
    compiled = by_name.get(COMPILED_HEAD_SLICES) or by_name.get(COMPILED_HEAD_UNFOLD)
    quartiles = ours.quartiles or ()
    return [
        case_title(ours.case),
        duration_or_dash(ours.milliseconds),
        " … ".join(duration(quartile) for quartile in quartiles),
        share(ours.fraction_of_copy),
        time_ratio(stored, ours),
        time_ratio(compiled, ours),
        number(ours.peak_mebibytes, 1),
        _peak(stored),
        _peak(compiled),
        number(megabytes_beyond(ours, []), 1),
        number(ours.error),
        ours.commit,
    ]


def _step_cells(by_name: dict[str, Row]) -> list[str]:
    ours = by_name[STEP_FUSED]
    others = [by_name.get(name) for name in (STEP_NAIVE, STEP_HEAD)]
    times = [None if row is None else row.milliseconds for row in (ours, *others)]
    return [
        case_title(ours.case),
        *(duration_or_dash(milliseconds) for milliseconds in times),
        *(time_ratio(row, ours) for row in others),
        *(_peak(row) for row in (ours, *others)),
        ours.commit,
    ]


def _photo_cells(by_name: dict[str, Row]) -> list[str]:
    ours, files = by_name[INFER], by_name.get(FILES)
    return [
        case_title(ours.case),
        number(ours.megapixels_per_second, 3),
        duration_or_dash(ours.milliseconds),
        " … ".join(duration(quartile) for quartile in ours.quartiles or ()),
        number(ours.peak_mebibytes_per_megapixel, 0),
        number(None if files is None else files.megapixels_per_second, 3),
        number(ours.error),
        ours.commit,
    ]


def _peak(row: Row | None) -> str:
    return number(None if row is None else row.peak_mebibytes, 1)
