import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dkpn import DKPN, DKPNConfig, viewer
from dkpn.color import linear_to_srgb
from dkpn.viewer import View, look_inside, write_page

Image = pytest.importorskip("PIL.Image", reason="Pillow writes the page's pictures")

TINY = DKPNConfig(
    width=4, pooled_width=4, channel_multipliers=(1,), encoder_blocks=(1,), decoder_blocks=()
)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def result(height: int = 40, width: int = 60) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.exp(rng.normal(0, 2.5, (height, width, 3))).astype(np.float32)


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def data_of(page: Path) -> list[dict]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))).astype(float)


def test_page_holds_the_light_and_needs_nothing_else(tmp_path):
    image = result()
    image[0, 0] = 0.0
    image[0, 1] = [6e4, 1e-3, 255.9 / 256]
    write_page(tmp_path / "page.html", [View("</script> <b>", image, photo())])
    (picture,) = data_of(tmp_path / "page.html")
    assert picture["name"] == "</script> <b>"
    light = pixels(picture["mantissa"]) * np.exp2(pixels(picture["exponent"]) - 136)[..., None]
    # Half a step of the largest channel's mantissa, which has 127.5 to 255.5 steps.
    bound = image.max(axis=2, keepdims=True) / 255
    assert (np.abs(light - image) <= bound).all()
    assert sum(picture["histogram"]["result"]) == 40 * 60
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<(img|link|iframe)|<script[^>]* src|https?:|@import|url\(|fetch\(", text)


def test_insight_is_what_the_network_predicts():
    torch.manual_seed(0)
    model, image = DKPN(TINY).eval(), photo(20, 300)
    insight = look_inside(model, image)
    with torch.inference_mode():
        output = model(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    assert insight.masks.shape == (20, 300, 2)
    expected = output.masks[0].reshape(2, 3, 20, 300).amax(1).permute(1, 2, 0)
    torch.testing.assert_close(torch.from_numpy(insight.masks), expected)
    assert insight.taps is not None
    assert insight.gains is not None
    assert insight.taps.shape == (20, viewer.GRID, 25)
    assert insight.gains.shape == (20, viewer.GRID, 3)
    column = int(7.5 * 300 / viewer.GRID)
    torch.testing.assert_close(
        torch.from_numpy(insight.taps[3, 7]), output.spatial_filter[0, :, 3, column]
    )
    without = look_inside(DKPN(DKPNConfig(head="preliminary", pooled_width=4)).eval(), image)
    assert without.taps is None


def test_pages_stay_below_their_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "MOST_BYTES", 60_000)
    write_page(tmp_path / "page.html", [View("large", result(200, 300))])
    assert (tmp_path / "page.html").stat().st_size <= 60_000
    (picture,) = data_of(tmp_path / "page.html")
    assert 16 <= picture["width"] < 300
    monkeypatch.setattr(viewer, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="views: 1 results do not fit"):
        write_page(tmp_path / "none.html", [View("large", result())])
    assert not (tmp_path / "none.html").exists()


def test_long_pictures_are_shrunk(tmp_path):
    write_page(tmp_path / "page.html", [View("long", result(3, 5000)), View("dot", result(1, 1))])
    long, dot = data_of(tmp_path / "page.html")
    assert (long["width"], long["height"]) == (2048, 1)
    assert (dot["width"], dot["height"]) == (1, 1)


def test_results_that_cannot_be_shown_are_refused(tmp_path):
    with pytest.raises(ValueError, match="views: expected at least one"):
        write_page(tmp_path / "page.html", [])
    broken = result()
    broken[1, 1, 1] = np.nan
    with pytest.raises(ValueError, match="broken: expected finite values"):
        write_page(tmp_path / "page.html", [View("broken", broken)])


@pytest.fixture
def browser():
    if not (CHROMIUM and DRIVER):
        pytest.skip(
            "chromium and chromedriver are not installed; the page was not run in a browser"
        )
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=service.Service(DRIVER))
    yield driver
    driver.quit()


def test_page_in_a_browser(tmp_path, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    image, original = result(), photo()
    insight = look_inside(DKPN(TINY).eval(), original)
    views = [View("first", image, original, insight), View("second", 4 * image)]
    write_page(tmp_path / "page.html", views, white_nits=100.0)
    browser.get((tmp_path / "page.html").as_uri())

    def run(script: str):
        return browser.execute_script(script)

    def wait(script: str) -> None:
        WebDriverWait(browser, 30).until(lambda _: run(f"return {script}"))

    def shown(x: int, y: int) -> np.ndarray:
        code = f"getContext('2d').getImageData({x},{y},1,1).data"
        return np.array(list(run(f"return Array.from(document.getElementById('view').{code})"))[:3])

    def expected(light: np.ndarray) -> np.ndarray:
        encoded = linear_to_srgb(torch.from_numpy(light).clamp(0, 1)).numpy()
        return (255 * encoded).round()

    wait("document.body.dataset.ready === 'first'")
    # Left of the split is the photo (a JPEG in the page), right of it the result.
    assert np.abs(shown(5, 7) - original[7, 5]).mean() < 40
    # A step of the shared exponent is at most 1/128 of a value: two codes.
    np.testing.assert_allclose(shown(50, 9), expected(image[9, 50]), atol=3)
    key = ActionChains(browser)
    for _ in range(8):
        key.send_keys("\ue015")  # arrow down: a quarter of a stop darker
    key.perform()
    wait("state.exposure === -2 && !waiting")
    np.testing.assert_allclose(shown(50, 9), expected(image[9, 50] / 4), atol=3)
    ActionChains(browser).send_keys("0").perform()
    wait("state.exposure === 0 && !waiting")
    # The pointer's pixel, its light and its filter.
    stage = browser.find_element("id", "stage")
    ActionChains(browser).move_to_element(stage).perform()
    wait("document.getElementById('values').textContent.includes('cd/m²')")
    assert re.search("30, (19|20)\n", browser.find_element("id", "values").text)
    assert "gain, stops" in browser.find_element("id", "gains").text
    filled = "getContext('2d').getImageData(120,120,1,1).data[3]"
    assert run(f"return document.getElementById('filter').{filled}") == 255
    # Dragging moves the split; a touch does the same through pointer events.
    ActionChains(browser).move_to_element_with_offset(
        stage, -stage.size["width"] // 4, 0
    ).click().perform()
    wait("Math.abs(state.split - 0.25) < 0.02 && !waiting")
    for name, toggle in (("l", "colours"), ("m", "masks")):
        ActionChains(browser).send_keys(name).perform()
        wait(f"state.{toggle} && document.getElementById('{toggle}').ariaPressed === 'true'")
    assert browser.find_element("id", "legendbox").is_displayed()
    ActionChains(browser).send_keys("n").perform()
    wait("document.body.dataset.ready === 'second'")
    ActionChains(browser).send_keys("0").perform()
    wait("state.exposure === 0 && !waiting")
    # Without a photo the result fills the picture, and there is no filter to show.
    np.testing.assert_allclose(shown(5, 7), expected(4 * image[7, 5]), atol=3)
    assert not browser.find_element("id", "filterbox").is_displayed()
    # A warning is about this test's own reading of the canvas.
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
