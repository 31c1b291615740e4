"""The report in a real browser: what is drawn and told, and that nothing else happens."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erg.report.build import write_report

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,900",
)  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM.exists() and DRIVER.exists()),
        reason=f"needs {CHROMIUM} and {DRIVER} (Debian packages chromium and chromium-driver)",
    ),
]

# Places of a class's pixels: mean x and y in CSS pixels, and how many are drawn (at one
# device pixel per CSS pixel).
DRAWN = """
const canvas = document.getElementById('map-canvas');
const {width, height} = canvas, box = canvas.getBoundingClientRect();
const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
let n = 0, x = 0, y = 0;
for (let i = 0; i < width * height; i++)
  if (data[4 * i + 3] > 60) { n++; x += i % width; y += Math.floor(i / width); }
return {n, x: x / n, y: y / n, width: box.width, height: box.height};
"""


class Browser:
    """Chromium with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.set_capability("unhandledPromptBehavior", "ignore")
        # With both paths given, selenium's manager has nothing to look for or download.
        self.driver = webdriver.Chrome(options, Service(executable_path=str(DRIVER)))

    def open(self, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        self.logs("browser"), self.logs("performance")
        self.driver.get(page.as_uri())
        self.js("document.documentElement.style.scrollBehavior = 'auto'")
        self.js("document.querySelector('#map').scrollIntoView()")
        time.sleep(0.4)  # wheel events right after scrolling belong to the page

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def drawn(self) -> dict[str, float]:
        """What is on the map, two frames from now."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )
        return self.js(DRAWN)

    def logs(self, kind: str) -> list[dict[str, Any]]:
        return self.driver.get_log(kind)

    def requests(self) -> list[str]:
        """Addresses of everything asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.logs("performance")]
        sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [m["params"]["request"]["url"] for m in sent]

    def pointer(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A trusted mouse event at a place of the map [CSS pixels]."""
        box = self.js(
            "const b = document.getElementById('map-canvas').getBoundingClientRect();"
            "return [b.left, b.top]"
        )
        event = {"type": kind, "x": box[0] + x, "y": box[1] + y, **more}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def told(self) -> tuple[str, str] | None:
        """Path and label beside the pointer."""
        return self.js(
            "const t = document.getElementById('map-tip'); return t.hidden ? null :"
            "[t.querySelector('.path').textContent, t.querySelector('.label').textContent]"
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    profile = tmp_path_factory.mktemp("chromium")
    opened = Browser(profile)
    yield opened
    opened.driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


def grid(n: int) -> np.ndarray:
    """Places far enough from each other to be told apart by pointing."""
    return np.array([(i % 5, i // 5) for i in range(n)], float)


def test_hostile_names_do_nothing_and_are_shown(
    browser: Browser, hostile: Path, payloads: tuple[str, ...]
) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    browser.open(write_report(hostile))
    browser.pointer("mouseMoved", 300, 300)
    browser.drawn()
    with pytest.raises(NoAlertPresentException):
        _ = browser.driver.switch_to.alert.text
    assert browser.js("return typeof window.PWN") == "undefined"
    assert browser.logs("browser") == []
    assert [u for u in browser.requests() if not u.startswith(("file:", "data:"))] == []
    legend = browser.js(
        "return [...document.querySelectorAll('#map-legend bdi')].map(e => e.textContent)"
    )
    assert len(legend) == 12
    assert legend[11] == "9 other classes"
    assert set(legend[:11]) <= set(payloads)
    shown = browser.js("return document.querySelector('#neighbours').textContent")
    for label in payloads[:3]:
        assert label in shown
    assert browser.js("return document.querySelectorAll('img, iframe, base').length") == 0


def test_hovering_tells_the_image_under_the_pointer(
    browser: Browser, make_run: Callable[..., Path], payloads: tuple[str, ...]
) -> None:
    labels = [f"class {i:02d}" for i in range(10)]
    browser.open(write_report(make_run(names=payloads[:10], labels=labels, xy=grid(10))))
    everything = browser.drawn()
    assert everything["n"] > 10 * 20
    click = "document.querySelectorAll('#map-legend button')[arguments[0]].click()"
    for i in range(10):
        browser.js(click, i)
    assert browser.drawn()["n"] == 0
    place = {}
    for i in (0, 3, 7, 9):
        browser.js(click, i)
        one = place[i] = browser.drawn()
        assert 0 < one["n"] < everything["n"] / 5
        browser.pointer("mouseMoved", one["x"], one["y"])
        assert browser.told() == [payloads[i], labels[i]]
        browser.pointer("mouseMoved", one["x"] + 40, one["y"])
        assert browser.told() is None
        browser.js(click, i)
    assert place[3]["x"] > place[0]["x"] + 50  # x to the right, y upwards
    assert place[7]["y"] < place[0]["y"] - 50


def test_the_thumbnail_beside_the_pointer_is_that_of_the_image(
    browser: Browser, make_run: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 255, (25, 3))
    thumbs = np.broadcast_to(colours[:, None, None], (25, 48, 48, 3)).astype(np.uint8)
    names = [f"{i}.png" for i in range(25)]  # ten in a row of the sprite sheet
    browser.open(write_report(make_run(names=names, thumbs=thumbs, xy=grid(25), label=False)))
    browser.js("document.getElementById('map-canvas').focus()")
    seen = set()
    for key in ["ArrowRight"] * 2 + ["ArrowDown"] * 2 + ["ArrowLeft"] * 3 + ["ArrowUp"] * 4:
        browser.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "key": key})
        told = browser.told()
        assert told is not None
        item = int(told[0].removesuffix(".png"))
        seen.add(item)
        pixel = browser.js(
            "return [...document.querySelector('#map-tip canvas').getContext('2d')"
            ".getImageData(48, 48, 1, 1).data]"
        )
        np.testing.assert_allclose(pixel[:3], colours[item], atol=12)
        assert browser.js("return document.getElementById('map-spoken').textContent") == told[0]
    assert {item // 10 for item in seen} == {0, 1, 2}


def test_wheel_zooms_drag_moves_and_0_shows_all(
    browser: Browser, make_run: Callable[..., Path]
) -> None:
    names = [f"{i}.png" for i in range(400)]
    browser.open(write_report(make_run(names=names)))
    before = browser.drawn()
    middle = before["width"] / 2, before["height"] / 2
    for _ in range(3):
        browser.pointer("mouseWheel", *middle, deltaX=0, deltaY=-300)
    zoomed = browser.drawn()
    assert browser.js("return document.getElementById('map-canvas').className") == "zoomed"
    assert (zoomed["n"], zoomed["x"]) != (before["n"], before["x"])
    at = browser.js("return scrollY")
    browser.pointer("mousePressed", *middle, button="left", clickCount=1)
    browser.pointer("mouseMoved", middle[0] + 90, middle[1], button="left", buttons=1)
    browser.pointer("mouseReleased", middle[0] + 90, middle[1], button="left")
    moved = browser.drawn()
    assert moved["x"] != pytest.approx(zoomed["x"], abs=0.5)
    assert browser.js("return scrollY") == at
    browser.js("document.querySelector('[data-zoom=\"0\"]').click()")
    browser.pointer("mouseMoved", -5, -5)
    again = browser.drawn()
    assert again["n"] == before["n"]


@pytest.mark.parametrize("width", [320, 360, 1280])
@pytest.mark.parametrize("which", ["run_folder", "hostile"])
def test_no_horizontal_scrolling(
    browser: Browser, width: int, which: str, request: pytest.FixtureRequest
) -> None:
    browser.open(write_report(request.getfixturevalue(which)), width=width)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.js("return innerWidth") == width
    assert browser.js("return document.documentElement.scrollWidth") <= width
    assert browser.drawn()["n"] > 100
    assert browser.logs("browser") == []


def test_dark_and_light_are_both_drawn(browser: Browser, run_folder: Path) -> None:
    page = write_report(run_folder)
    paper, ink, dots = [], [], []
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        style = "return getComputedStyle(document.body)[arguments[0]]"
        paper.append(luminance(browser.js(style, "backgroundColor")))
        ink.append(luminance(browser.js(style, "color")))
        dots.append(browser.js("return document.querySelector('#map-legend i').style.background"))
        assert browser.drawn()["n"] > 100
    assert paper[0] > 0.9 > 0.2 > paper[1]
    assert ink[0] < 0.2 < 0.8 < ink[1]
    assert dots[0] != dots[1]


def luminance(colour: str) -> float:
    parts = [float(v) for v in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(parts) / 3 / 255
