import numpy as np
import pytest
import torch

from dkpn.color import tone_map
from dkpn.model import DKPNOutput
from dkpn.monitor import (
    COLUMNS,
    EXPOSURES,
    PANEL_TITLES,
    MetricsFile,
    comparison,
    darker,
    panel,
    read_metrics,
    write_pictures,
)
from dkpn.photos import read_photo


def row(iteration):
    return dict.fromkeys(COLUMNS, "1.5") | {"iteration": str(iteration), "split": "train"}


def test_metrics_grow_row_by_row_and_a_resumed_run_drops_later_ones(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, 0)
    for iteration in (10, 20, 30):
        file.append(row(iteration))
    MetricsFile(path, 20).append(row(25))
    assert [one["iteration"] for one in read_metrics(path)] == ["10", "20", "25"]
    MetricsFile(path, 0)
    assert read_metrics(path) == []
    assert path.read_text().startswith("iteration,split,total")


def test_a_row_that_was_not_finished_is_dropped_and_the_others_stay(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, 0)
    file.append(row(100))
    file.append(row(200))
    text = path.read_bytes()
    for cut in range(1, len(text) - text.rindex(b"200")):
        path.write_bytes(text[:-cut])
        assert [one["iteration"] for one in read_metrics(path)] == ["100"]
        MetricsFile(path, 100).append(row(150))
        assert [one["iteration"] for one in read_metrics(path)] == ["100", "150"]


def test_a_panel_shows_each_step_at_three_exposures():
    """A photo that clips; a preliminary result and a result that are 2 and 4 stops above it."""
    photo = torch.ones(1, 3, 4, 5)
    masks = torch.cat((torch.ones(1, 3, 4, 5), torch.zeros(1, 3, 4, 5)), dim=1)
    masks[0, :3, 0], masks[0, 3:, 0] = 0.0, 1.0  # the first row is under-exposed
    masks[0, :, 1] = 0.0  # the second is neither
    output = DKPNOutput(16.0 * photo, 4.0 * photo, masks, None, None)
    rows = panel(photo, output, 0.5 * photo)
    assert len(rows) == len(EXPOSURES) == 3
    for stops, row in zip((0, 2, 4), rows, strict=True):
        assert row.shape == (len(PANEL_TITLES), 3, 4, 5)
        for column, light in ((0, 1.0), (1, 4.0), (3, 16.0), (4, 0.5)):
            expected = darker(torch.full((3, 4, 5), light), float(stops))
            assert torch.equal(row[column], expected)
        assert row[2, :, :3, 0].tolist() == [[0.0, 0.5, 1.0]] * 3


def test_preliminary_result_and_truth_share_one_exposure():
    torch.manual_seed(0)
    photo, preliminary, result, truth = torch.rand(4, 3, 5, 7)
    pictures = comparison(photo, preliminary, result * 4, truth * 8)
    assert pictures.shape == (4, 3, 5, 7)
    assert torch.equal(pictures[0], photo)
    together = tone_map(torch.cat((preliminary, result * 4, truth * 8), dim=-1))
    assert torch.equal(torch.cat(tuple(pictures[1:]), dim=-1), together)


def test_darker_is_a_shorter_exposure():
    image = torch.tensor([0.25, 4.0, 100.0]).reshape(3, 1, 1)
    values = darker(image, 2.0).flatten()
    assert values[1:].tolist() == pytest.approx([1.0, 1.0])
    assert 0.25 < values[0] < 0.3  # sRGB encodes 1/16 as 0.278


def test_pictures_lie_under_their_titles(tmp_path):
    first = torch.stack([torch.full((3, 4, 30), value) for value in (0.0, 0.5)])
    second = torch.stack([torch.full((3, 6, 40), value) for value in (1.0, 0.0)])
    path = tmp_path / "table.png"
    write_pictures(path, [first, second], ("one", "two"))
    picture = read_photo(path).pixels
    # Both columns are as wide as the widest picture, with a gap; the rest is white or text.
    assert picture.shape[1] == 2 * 40 + 6
    black = (picture == 0).all(axis=2)
    assert black[26:30, :30].all()
    assert black[36:42, 46:86].all()
    assert (picture[26:30, 46:76] == np.uint8(128)).all()
