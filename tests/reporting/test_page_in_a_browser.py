"""The page in a real browser, at desktop and phone width: no overflow, no error, no request."""

import os
import shutil
from pathlib import Path

import pytest
from report_record import RECORDS

from unlearnkit.reporting.page import Table, render_comparison, render_page

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
WIDTHS = {"desktop": 1280, "tablet": 768, "phone": 390}
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
QUIET += ("--disable-background-networking", "--disable-component-update", "--hide-scrollbars")

WIDER = """
const limit = document.documentElement.clientWidth + 1, wide = [];
for (const e of document.querySelectorAll('body *')) {
  if (e.closest('.box') && !e.classList.contains('box')) continue;  // tables scroll in a box of their own
  if (e.getBoundingClientRect().right > limit) wide.push(e.tagName + ' ' + (e.textContent || '').trim().slice(0, 40));
}
return {width: document.documentElement.scrollWidth, limit: limit, wide: wide};
"""
CUT = """
const cut = [];
for (const svg of document.querySelectorAll('figure svg')) {
  const frame = svg.getBoundingClientRect();
  for (const text of svg.querySelectorAll('text')) {
    const r = text.getBoundingClientRect();
    const low = r.left < frame.left - 1 || r.top < frame.top - 1;
    if (low || r.right > frame.right + 1 || r.bottom > frame.bottom + 1) cut.push(text.textContent);
  }
}
return cut;
"""
ROWS = (("c", "10", "0.5"), ("a", "9", "0.25"), ("d", "–", "0.75"), ("b", "2", "–"))
COMPARISON = render_comparison(
    Table(caption="A click on a heading sorts by it", header=("variant", "n", "ToW"), rows=ROWS), words=("A note.",)
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that logs requests and console messages."""
    selenium = pytest.importorskip("selenium.webdriver", reason="the extra 'browser' is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("neither Chromium nor chromedriver is installed here")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def opened(browser, tmp_path, name, width):
    path = tmp_path / "report.html"
    path.write_text(COMPARISON if name == "comparison" else render_page(RECORDS[name]), encoding="utf-8")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # discard earlier entries
    browser.get(path.as_uri())
    return path.as_uri()


def requests(browser):
    import json

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def keep(browser, name):
    """Save a screenshot of the page if a folder for it is set."""
    if folder := os.environ.get("UNLEARNKIT_SCREENSHOTS"):
        import base64

        size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


@pytest.mark.parametrize("device", WIDTHS)
@pytest.mark.parametrize("name", RECORDS)
def test_the_page(browser, tmp_path, name, device):
    address = opened(browser, tmp_path, name, WIDTHS[device])
    keep(browser, f"{name}-{device}")
    assert browser.get_log("browser") == []
    assert [url for url in requests(browser) if url != address and not url.startswith("data:")] == []
    for _ in ("folded", "unfolded"):
        found = browser.execute_script(WIDER)
        assert found["wide"] == []
        assert found["width"] <= found["limit"]
        browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; });")
    assert browser.execute_script(CUT) == []


def scheme(browser, value):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": value}]}
    )


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_axe_finds_no_fault(browser, tmp_path, device, colours):
    """Accessibility, checked by axe-core, an npm package: AXE names its axe.min.js."""
    if "AXE" not in os.environ:
        pytest.skip("the environment variable AXE does not name axe.min.js of the npm package axe-core")
    source = Path(os.environ["AXE"]).read_text(encoding="utf-8")
    for name in ("full", "comparison"):
        opened(browser, tmp_path, name, WIDTHS[device])
        scheme(browser, colours)
        keep(browser, f"{name}-{device}-{colours}")
        # Not through a script element, which the page's content security policy forbids.
        browser.execute_cdp_cmd("Runtime.evaluate", {"expression": source})
        found = browser.execute_async_script("axe.run().then(arguments[0]);")
        assert [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found["violations"]] == []


def test_a_click_on_a_heading_sorts_a_comparison(browser, tmp_path):
    opened(browser, tmp_path, "comparison", 1280)

    def column(number):
        return browser.execute_script(
            "return [...document.querySelectorAll('tbody tr')].map(r => r.children[arguments[0]].textContent)", number
        )

    def click(number):
        browser.execute_script("document.querySelectorAll('th button')[arguments[0]].click()", number)

    click(1)
    assert column(1) == ["2", "9", "10", "–"]
    click(1)
    assert column(1) == ["10", "9", "2", "–"]
    click(0)
    assert column(0) == ["a", "b", "c", "d"]
    assert browser.execute_script("return document.querySelector('th').getAttribute('aria-sort')") == "ascending"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_text_contrast_meets_wcag(browser, tmp_path, colours):
    """WCAG: at least 4.5 for text; plots use the same colour."""
    opened(browser, tmp_path, "full", 1280)
    scheme(browser, colours)
    found = browser.execute_script(
        "const of = (s, p) => getComputedStyle(document.querySelector(s))[p];"
        "return {paper: of('body', 'backgroundColor'), ink: of('body', 'color'), soft: of('figcaption', 'color'),"
        " link: of('a', 'color'), badge: of('.badge', 'color'), picture: of('figure svg text', 'fill')};"
    )
    paper = luminance(found.pop("paper"))
    for what, colour in found.items():
        low, high = sorted([paper, luminance(colour)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{what} {colour}"
    assert (paper < 0.1) == (colours == "dark")


def luminance(rgb):
    channels = [int(text) / 255 for text in rgb[rgb.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_checks_detect_overflow_requests_and_errors(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><p style='width:3000px'>wide</p><script>throw 1</script>")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    assert browser.execute_script(WIDER)["wide"] == ["P wide"]
    assert browser.get_log("browser") != []
    assert "http://127.0.0.1:9/x.png" in requests(browser)
