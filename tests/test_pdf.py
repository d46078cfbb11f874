"""``make pdf``: the whole book on paper, formulas drawn, nothing raw."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_book import ARTICLES, ROOT, soup_of
from test_browser import CHROMIUM

pytestmark = [pytest.mark.built, pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def text():
    if not CHROMIUM:
        pytest.skip("PDF TEST SKIPPED: no chromium on this machine (Debian: apt install chromium)")
    if not shutil.which("pdftotext"):
        pytest.skip("PDF TEST SKIPPED: no pdftotext on this machine (Debian: apt install poppler-utils)")
    command = ["make", "-o", "environment-book", "pdf", f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pdf = ROOT / "_build/book.pdf"
    return subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout


def test_every_article_is_in_the_pdf_with_numbers_and_figures(text):
    plain = re.sub(r"\s+", " ", text)
    for article in ARTICLES:
        for caption in soup_of(article).select("figcaption .caption-number"):
            assert caption.get_text(strip=True) in plain


def test_tables_that_the_screen_folds_are_on_paper(text):
    plain = re.sub(r"\s+", " ", text)
    captions = [tag.get_text() for article in ARTICLES for tag in soup_of(article).select(".tag_hide-cell caption")]
    assert captions
    assert not [caption for caption in captions if " ".join(caption.split()[:5]) not in plain]


def test_nothing_is_raw_or_of_the_screen_only(text):
    assert not re.search(r"\\(frac|lfloor|text|mathbb|le)\b", text)  # TeX that MathJax did not draw
    for control in ("Copy to clipboard", "Show code cell source", "Skip to main content"):
        assert control not in text


def test_pages_are_numbered(text):
    pages = text.rstrip("\f\n ").split("\f")
    assert len(pages) > 20
    assert [page.strip().splitlines()[-1].strip() for page in pages] == [str(n + 1) for n in range(len(pages))]
