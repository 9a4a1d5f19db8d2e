"""Every page of the site in a browser, as wide as a telephone and as wide as a desk; `make check-book` runs this."""

import re
import shutil

import pytest
from playwright.sync_api import sync_playwright

from rare_token_neurons import paths

SITE = paths.ROOT / "build/book"
PAGES = sorted(path.name for path in SITE.glob("*.html"))
BROWSERS = [found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))]
pytestmark = pytest.mark.skipif(not BROWSERS, reason="there is no Chromium here (on Debian: apt-get install chromium)")

# What reaches beyond the page and is in no box of its own that scrolls (the article is none), and what a box hides.
CUT = """() => [...document.querySelectorAll("body *")].filter(one => {
    const box = one.getBoundingClientRect();
    if (one.closest("mjx-assistive-mml")) return false;  // for screen readers
    if (one.closest("article") && getComputedStyle(one).overflowX == "hidden" && one.scrollWidth > one.clientWidth + 1)
        return true;
    if (!box.width || box.right <= innerWidth + 1 || box.left >= innerWidth) return false;
    for (let above = one.parentElement; above && above.tagName != "ARTICLE"; above = above.parentElement)
        if (/auto|scroll/.test(getComputedStyle(above).overflowX)) return false;
    return true;
}).map(one => `${one.tagName} ${one.className}: ${Math.round(one.getBoundingClientRect().right)}`)"""
BLANK = "() => [...document.images].filter(one => !one.naturalWidth).map(one => one.src)"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=BROWSERS[0], args=["--no-sandbox"])


@pytest.fixture
def opened(browser):
    """A function that opens a page at a width: (the page, what went wrong on the way)."""
    said, context = [], browser.new_context()
    context.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: said.append(str(error.error)))
    context.on("requestfailed", lambda request: said.append(request.url))
    context.route(re.compile("^https?:"), lambda route: route.abort())  # then a failed request

    def open_at(name, width):
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 1000})
        page.goto(f"{SITE.as_uri()}/{name}", wait_until="load")
        page.evaluate("window.MathJax && MathJax.startup.promise")
        return page, said

    yield open_at
    context.close()


@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(opened, name, width):
    page, said = opened(name, width)
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width and page.evaluate(CUT) == []
    assert page.evaluate(BLANK) == []
    formulas = page.locator(".math").count()
    assert page.locator(".math mjx-container").count() == formulas and not page.locator("mjx-merror").count()


def test_search_finds_a_notebook(opened):
    page, said = opened("search.html?q=Marchenko", 1300)
    page.wait_for_selector("ul.search a[href^='07_weight_spectra.html']")
    assert said == []
