"""axe-core on every page, light and dark: no violation but the theme's own, which are listed by name."""

import pytest
from test_book import PAGES
from test_browser import DESKTOP, PHONE, Visit, browser  # noqa: F401  (browser is a fixture)

pytestmark = [pytest.mark.built, pytest.mark.browser]

# Violations in what others write, which a page of this book cannot mend: (axe rule, part of the selector) -> whose.
OTHERS = {
    ("region", ".sidebar-primary-items__start"): "sphinx-book-theme: the site's name stands outside every landmark",
    ("empty-heading", "#jb-print-docs-body"): "sphinx-book-theme: print title of pages without a source",
    ("aria-required-children", ".citation-list"): "sphinxcontrib-bibtex: role=list around entries that are no listitem",
    ("aria-allowed-role", "#cite-"): "docutils and bibtex: role=doc-biblioentry on a div",
    ("aria-deprecated-role", "#cite-"): "docutils and bibtex: role=doc-biblioentry",
}
EVERY = [*PAGES, "search", "genindex", "404"]
QUICK = ["intro", "references", "explorers/occupancy", "search"]
PHONE_RULES = ["scrollable-region-focusable", "target-size", "meta-viewport", "label", "button-name", "link-name"]


@pytest.fixture(scope="session")
def axe():
    """The source of axe.min.js, which the package axe-playwright-python carries."""
    module = pytest.importorskip(
        "axe_playwright_python.base", reason="ACCESSIBILITY TESTS SKIPPED: axe-playwright-python is not installed"
    )
    return module.AXE_SCRIPT


def violations(visit, axe, options=None):
    """Return what axe finds wrong on a page, less what OTHERS names: rule, selector and the element's beginning."""
    visit.page.evaluate("() => window.MathJax?.startup?.promise")
    visit.page.evaluate(axe)
    options = {"resultTypes": ["violations"]} | (options or {})  # of what passes one element is enough
    result = visit.page.evaluate("options => axe.run(document, options)", options)
    assert result["passes"], "axe checked nothing"
    return [
        (rule["id"], node["target"][0], node["html"][:100])
        for rule in result["violations"]
        for node in rule["nodes"]
        if not any(rule["id"] == known and part in node["target"][0] for known, part in OTHERS)
    ]


@pytest.mark.parametrize("name", QUICK)
def test_page_is_accessible(browser, axe, name):  # noqa: F811
    with Visit(browser, name, viewport=DESKTOP) as visit:
        assert violations(visit, axe) == []


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", EVERY)
def test_every_page_is_accessible(browser, axe, name, theme):  # noqa: F811
    with Visit(browser, name, viewport=DESKTOP, theme=theme) as visit:
        assert violations(visit, axe) == []


@pytest.mark.parametrize("name", PAGES)
def test_page_is_accessible_on_a_phone(browser, axe, name):  # noqa: F811
    """The rules that depend on the screen's width."""
    with Visit(browser, name, viewport=PHONE) as visit:
        assert violations(visit, axe, {"runOnly": {"type": "rule", "values": PHONE_RULES}}) == []


def test_a_violation_is_seen(browser, axe):  # noqa: F811
    with Visit(browser, "intro", viewport=DESKTOP) as visit:
        visit.page.evaluate("document.querySelector('article').append(document.createElement('button'))")
        assert [rule for rule, *_ in violations(visit, axe)] == ["button-name"]
