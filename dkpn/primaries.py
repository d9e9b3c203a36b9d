"""Primaries of RGB colour spaces, and the matrices between them and CIE XYZ.

A colour space is given by eight chromaticities: x and y of red, green, blue and white. Matrices are
float64, (3, 3), and multiply columns.
"""

from collections.abc import Sequence

import numpy as np

REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
"""Red, green, blue and white of Rec.709 and sRGB (ITU-R BT.709-6)."""

# The white of the ICC's connection space (ICC.1:2022, 7.2.16), X, Y, Z.
_D50 = np.array([0.9642, 1.0, 0.8249])
# The Bradford cone response matrix (ICC.1:2022, annex E).
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def rgb_to_rec709(chromaticities: Sequence[float]) -> np.ndarray:
    """Return the matrix from linear RGB of these primaries and white to linear Rec.709.

    Where the white differs, colours are adapted with the Bradford matrix: white stays white.

    Args:
        chromaticities: x, y of red, green, blue and white; eight numbers, or four pairs.

    >>> rgb_to_rec709(REC709).round(6) + 0.0
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """
    source, white = _rgb_to_xyz(chromaticities)
    target, target_white = _rgb_to_xyz(REC709)
    return np.linalg.inv(target) @ _adaptation(white, target_white) @ source


def xyz_d50_to_rec709() -> np.ndarray:
    """Return the matrix from CIE XYZ as ICC profiles give it (white D50) to linear Rec.709."""
    target, white = _rgb_to_xyz(REC709)
    return np.linalg.inv(_adaptation(white, _D50) @ target)


def _adaptation(source_white: np.ndarray, target_white: np.ndarray) -> np.ndarray:
    gain = (_BRADFORD @ target_white) / (_BRADFORD @ source_white)
    return np.linalg.inv(_BRADFORD) @ np.diag(gain) @ _BRADFORD


def _rgb_to_xyz(chromaticities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    xy = np.asarray(chromaticities, dtype=np.float64).reshape(4, 2)
    columns = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(axis=1)) / xy[:, 1]])
    primaries, white = columns[:, :3], columns[:, 3]
    return primaries * np.linalg.solve(primaries, white), white
