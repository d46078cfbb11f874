"""The built book in Chromium, opened from disk: nothing fetched, nothing logged, nothing wider than the screen."""

import shutil

import pytest
from test_book import HTML, PAGES

pytestmark = [pytest.mark.built, pytest.mark.browser]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    if not CHROMIUM:
        pytest.skip("BROWSER TESTS SKIPPED: no chromium on this machine (Debian: apt install chromium)")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page opened from disk, with everything that it asked for and said."""

    def __init__(self, browser, name, *, viewport, theme="light"):
        self.context = browser.new_context(viewport=viewport, has_touch=viewport is PHONE)
        self.context.add_init_script(f"localStorage.mode = localStorage.theme = '{theme}'")
        self.page = self.context.new_page()
        self.requests, self.messages = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto((HTML / f"{name}.html").as_uri())
        self.page.wait_for_load_state("load")

    def _heard(self, message):
        if message.type != "log":  # the theme logs which mode it is in
            self.messages.append(message.text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_quiet_offline_and_fits(browser, name, viewport, theme):
    with Visit(browser, name, viewport=viewport, theme=theme) as visit:
        assert not [url for url in visit.requests if not url.startswith(("file:", "data:"))]
        assert visit.messages == []
        assert visit.page.evaluate("document.documentElement.dataset.theme") == theme
        width = visit.page.evaluate("document.documentElement.scrollWidth")
        assert width <= viewport["width"]


@pytest.mark.parametrize("name", [page for page in PAGES if page.startswith("chapters/")])
def test_maths_is_drawn_without_a_network(browser, name):
    with Visit(browser, name, viewport=DESKTOP) as visit:
        visit.page.wait_for_selector("mjx-container svg", state="attached", timeout=20_000)
        assert visit.page.locator("mjx-merror").count() == 0


def test_menu_opens_on_a_phone(browser):
    with Visit(browser, "intro", viewport=PHONE) as visit:
        link = visit.page.locator(".bd-sidebar-primary a", has_text="Projects").first
        assert not link.is_visible()
        visit.page.locator("button.primary-toggle").first.click()
        link.wait_for(state="visible", timeout=5_000)
        link.click()
        visit.page.wait_for_url("**/profile/projects.html")


def test_theme_button_changes_the_theme(browser):
    with Visit(browser, "intro", viewport=DESKTOP, theme="light") as visit:
        seen = []
        for _ in range(3):  # light, dark and the system's choice, in the theme's order
            visit.page.locator("button.theme-switch-button").first.click()
            seen.append(visit.page.evaluate("document.documentElement.dataset.theme"))
        assert set(seen) == {"light", "dark"}


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_badge_tells_its_evidence_by_keyboard_and_stays_on_the_page(browser, viewport):
    with Visit(browser, "chapters/mxfp8", viewport=viewport) as visit:
        for badge in visit.page.locator("article .evidence").all()[:40:5]:
            badge.focus()
            tip = badge.evaluate("badge => getComputedStyle(badge, '::after').content")
            assert tip.strip('"') == badge.get_attribute("data-tip")
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_search_finds_a_page_offline(browser):
    with Visit(browser, "search", viewport=DESKTOP) as visit:
        visit.page.goto((HTML / "search.html").as_uri() + "?q=occupancy")
        visit.page.wait_for_selector("#search-results li a", timeout=20_000)
