"""What the search index reads in a result's HTML."""

import pytest
from book_search import powers, readable, words
from docutils import nodes
from docutils.utils import new_document

TABLE = (
    '<style>td { color: red }</style><table><tr><td>gfx950</td><td>64</td></tr></table><div class="evidence-line">'
    '<span class="evidence" aria-label="compiled: clang 22 for gfx950">compiled</span></div><script>let x</script>'
)


def test_cells_are_words_of_their_own_and_badges_speak():
    assert words(TABLE).split() == ["gfx950", "64", "compiled", "compiled:", "clang", "22", "for", "gfx950"]


def test_a_name_that_may_break_stays_one_word():
    assert words("<td>v_mfma_<wbr>f32_<wbr>16x16x32</td><td>2</td>").split() == ["v_mfma_f32_16x16x32", "2"]


def test_the_page_itself_keeps_its_html():
    page = new_document("page")
    page += nodes.raw("", TABLE, format="html")
    page += nodes.raw("", r"\textbf{64}", format="latex")
    before = page.pformat()
    copy = readable(page)
    assert [type(node) for node in copy.children] == [nodes.inline, nodes.raw]
    assert page.pformat() == before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from 2⁻¹²⁷ to 10³⁸", "2pow_minus127 10pow_38"),
        ("2^−127, 2**-127 and 2^{-127}", "2pow_minus127"),  # the sign of typeset and of typed numbers
        ("x⁻¹, 2.0**-24, 2 * 127, 2-127", ""),
    ],
)
def test_a_power_is_a_word(text, found):
    assert powers(text) == found


def test_a_power_set_in_html_is_a_word_and_a_title_stays_as_it_is():
    page = new_document("page")
    page += nodes.title("", "Up to 2⁻¹²⁷")
    page += nodes.paragraph("", "", nodes.Text("code 0 is 2"), nodes.raw("", "<sup>", format="html"))
    page[-1] += [nodes.inline("", "−127"), nodes.raw("", "</sup>", format="html"), nodes.Text(", not zero.")]
    copy = readable(page)
    assert copy[0].astext() == "Up to 2⁻¹²⁷"
    assert copy[1].astext() == "code 0 is 2^−127, not zero. 2pow_minus127"
