import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from dkpn import metrics_optional
from dkpn.color import WHITE_NITS
from dkpn.columns import COLUMNS, check_columns
from dkpn.metrics_optional import color_video_vdp, hdr_flip
from dkpn.scenes import generate_scene

MEASURES = {"flip_evaluator": hdr_flip, "pycvvdp": color_video_vdp}


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    scene = generate_scene(2, (96, 112)).astype(np.float64)
    return scene / np.quantile(scene.max(axis=2), 0.9)


@pytest.fixture(autouse=True)
def forgotten():
    metrics_optional._color_video_vdp.cache_clear()
    yield
    metrics_optional._color_video_vdp.cache_clear()


def stand_in(monkeypatch, module: str, **attributes: object) -> None:
    """Put a module of one's own in the place of a package."""
    replacement = ModuleType(module)
    replacement.__spec__ = ModuleSpec(module, None)
    vars(replacement).update(attributes)
    monkeypatch.setitem(sys.modules, module, replacement)


# --- what the packages are given ----------------------------------------------------------------


def test_flip_is_given_the_truth_first_as_light_of_the_display(monkeypatch):
    seen = {}

    def judge(reference, test, kind, **options):
        seen.update(options, reference=reference, test=test, kind=kind)
        return None, 0.25, {}

    stand_in(monkeypatch, "flip_evaluator", evaluate=judge)
    truth = np.full((3, 4, 3), 0.5)
    truth[0, 0] = 1e6
    assert hdr_flip(np.zeros((3, 4, 3)), truth) == 0.25
    assert seen["kind"] == "HDR"
    assert seen["parameters"] == {"ppd": 67.0}
    for name, low, high in (("reference", 0.5, 4000 / WHITE_NITS), ("test", 0.005 / WHITE_NITS, 0)):
        assert seen[name].dtype == np.float32
        assert seen[name].min() == np.float32(low)
        assert seen[name].max() == np.float32(high or low)


def test_color_video_vdp_is_given_light_in_nits_and_a_display_of_that_range(monkeypatch):
    seen = {}

    def photometry(peak, **options):
        seen.update(options, peak=peak)

    def predict(test, reference, dim_order):
        seen.update(test=test, reference=reference, dim_order=dim_order)
        return torch.tensor(9.5), None

    stand_in(
        monkeypatch,
        "pycvvdp",
        vvdp_display_photo_eotf=photometry,
        cvvdp=lambda **options: SimpleNamespace(predict=predict),
    )
    truth = np.full((3, 4, 3), 1.0)
    assert color_video_vdp(np.zeros((3, 4, 3)), truth) == 9.5
    assert seen["peak"] / seen["contrast"] == pytest.approx(0.005)
    assert seen["dim_order"] == "HWC"
    assert seen["reference"].max() == np.float32(WHITE_NITS)
    assert seen["test"].max() == np.float32(0.005)


@pytest.mark.parametrize("module", MEASURES)
def test_without_the_package_the_error_says_what_to_install(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    image = np.ones((3, 4, 3))
    with pytest.raises(ModuleNotFoundError, match=rf"{module} is needed .* pip install"):
        MEASURES[module](image, image)


def test_columns_that_cannot_be_measured_are_named(monkeypatch):
    find_spec = "dkpn.columns.find_spec"
    monkeypatch.setattr(find_spec, lambda name: None)
    check_columns(("gain", "ssim", "mu_law"))
    for name, column in COLUMNS.items():
        if column.package:
            with pytest.raises(ModuleNotFoundError, match=rf"{name} needs .* pip install"):
                check_columns(("gain", name))
    with pytest.raises(ValueError, match=r"expected some of gain, crf, .* got 'psnr'"):
        check_columns(("psnr",))
    for names in ((), ("gain", "gain")):
        with pytest.raises(ValueError, match="expected columns, each once"):
            check_columns(names)


# --- HDR-FLIP -----------------------------------------------------------------------------------

# The fit of ACES that HDR-FLIP tone-maps with: (a x² + b x) / (c x² + d x + e).
ACES = (0.6**2 * 2.51, 0.6 * 0.03, 0.6**2 * 2.43, 0.6 * 0.59, 0.14)


def aces(light: float) -> float:
    a, b, c, d, e = ACES
    return (a * light**2 + b * light) / (c * light**2 + d * light + e)


def lightness(grey: float) -> float:
    return 116 * np.cbrt(grey) - 16


def hunt_adjusted(red: float, green: float, blue: float) -> np.ndarray:
    """CIELAB of linear sRGB, relative to its white, with the chroma scaled by the lightness."""
    matrix = [[10135552, 8788810, 4435075], [2613072, 8788810, 887015], [238224, 1464802, 11675433]]
    matrix = np.array(matrix) / np.array([[24577794], [12288897], [12288897]])
    ratios = matrix @ [red, green, blue] / matrix.sum(axis=1)
    delta = 6 / 29
    f = np.where(ratios > delta**3, np.cbrt(ratios), ratios / (3 * delta**2) + 4 / 29)
    level = 116 * f[1] - 16
    return np.array([level, 0.01 * level * 500 * (f[0] - f[1]), 0.01 * level * 200 * (f[1] - f[2])])


@pytest.mark.parametrize("factor", [0.25, 0.9, 1.5])
def test_flip_of_two_greys_is_the_published_formula(factor):
    """Without edges and colour, all that is left is lightness, at one exposure: by hand."""
    pytest.importorskip("flip_evaluator", reason='pip install "kpnops[eval]"')
    # The truth's brightest value is exposed so that it is shown as 0.85.
    a, b, c, d, e = ACES
    exposed = max(np.roots([a - 0.85 * c, b - 0.85 * d, -0.85 * e]))
    difference = abs(lightness(aces(exposed)) - lightness(min(aces(factor * exposed), 1.0))) ** 0.7
    green, blue = hunt_adjusted(0, 1, 0), hunt_adjusted(0, 0, 1)
    largest = (abs(green[0] - blue[0]) + np.hypot(*(green - blue)[1:])) ** 0.7
    knee = 0.4 * largest
    if difference < knee:
        expected = 0.95 * difference / knee
    else:
        expected = 0.95 + 0.05 * (difference - knee) / (largest - knee)
    grey = np.full((24, 24, 3), 0.3)
    # Single precision through a power of 0.7 and a matrix with seven digits.
    assert hdr_flip(factor * grey, grey) == pytest.approx(expected, rel=1e-3)


def test_flip_is_0_for_the_truth_and_grows_with_the_error(truth):
    pytest.importorskip("flip_evaluator", reason='pip install "kpnops[eval]"')
    noise = np.exp(np.random.default_rng(0).standard_normal(truth.shape))
    assert hdr_flip(truth, truth) == 0.0
    values = [hdr_flip(truth * noise**strength, truth) for strength in (0.02, 0.1, 0.5)]
    assert 0 < values[0] < values[1] < values[2] < 1


# --- ColorVideoVDP ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the package's own dependencies
def test_color_video_vdp_is_10_for_the_truth_and_falls_with_the_error(truth):
    pytest.importorskip("pycvvdp", reason="pip install cvvdp")
    noise = np.exp(np.random.default_rng(0).standard_normal(truth.shape))
    assert color_video_vdp(truth, truth) == pytest.approx(10.0, abs=1e-3)
    values = [color_video_vdp(truth * noise**strength, truth) for strength in (0.05, 0.2, 0.8)]
    assert 10 > values[0] > values[1] > values[2]
