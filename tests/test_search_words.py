"""What the search index reads in a result's HTML."""

from book_search import readable, words
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
