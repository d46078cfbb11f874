"""A resolved page as plain Markdown: no roles, numbers filled in, what stands behind each result said in words.

Used for the Markdown twin of every page and for the prose of the downloadable notebooks. GitHub's Markdown with tables
and dollar maths is the target, as notebooks, editors and language models read it. A node that the writer does not know
fails the build: leaving something out in silence would be worse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx.errors import ExtensionError

SKIPPED = (
    nodes.comment, nodes.meta, nodes.substitution_definition, nodes.target, nodes.Invisible, nodes.colspec,
)  # fmt: skip
SKIPPED_NAMES = {"index", "toctree", "tabular_col_spec"}
WRAPPERS = {"PassthroughTextElement", "compound", "glossary", "desc_content", "only", "legend", "dropdown_main"}
INLINE_WRAPPERS = {
    "inline", "generated", "PassthroughTextElement", "abbreviation", "title_reference", "number_reference",
    "pending_xref", "target", "dropdown_title", "download_reference", "classifier",
}  # fmt: skip
TERM = "term-"  # begins the ids of terms in a glossary
ADMONITIONS = {"note", "tip", "warning", "important", "admonition", "seealso", "hint", "caution", "attention"}


class MarkdownWriter:
    """Turn nodes of one page into Markdown.

    link    address for a reference's address in the built page; None leaves its text without a link
    badge   what to write after a value, from the kinds of evidence behind it
    on_cell called for every code cell instead of writing its code and results; the blocks it returns are written
    numbers numbers of figures and equations by their id, as Sphinx gives them: {"figure": {"fig-x": (1, 2)}, …}
    sources a line for each key of references.bib, as the page's own badges of cited results show it
    """

    def __init__(
        self,
        link: Callable[[str], str | None],
        badge: Callable[[list[str]], str],
        numbers: dict[str, dict[str, tuple[int, ...]]],
        on_cell: Callable[[nodes.Element], list[str]] | None = None,
        sources: dict[str, str] | None = None,
    ):
        """Keep how links, badges and code cells are to be written."""
        self.sources = sources or {}
        self.link, self.badge, self.numbers, self.on_cell = link, badge, numbers, on_cell

    # --- blocks ---

    def blocks(self, node: nodes.Node, depth: int = 0) -> list[str]:
        """Return the Markdown blocks of a block node; ``depth`` counts the sections around it."""
        name = type(node).__name__
        if isinstance(node, nodes.raw):
            return self._html_blocks(node.astext()) if node.get("format") == "html" else []
        if isinstance(node, SKIPPED) or name in SKIPPED_NAMES:
            return []
        write = getattr(self, f"_{name}", None)
        if write:
            return write(node, depth)
        if name in WRAPPERS:
            return self._children(node, depth)
        if name in ADMONITIONS:
            return [_quoted(self._children(node, depth))]
        raise ExtensionError(f"no Markdown for a <{name}>: {node.astext()[:80]!r}")

    def _children(self, node: nodes.Element, depth: int) -> list[str]:
        """Write children; text and inline nodes in a row make one paragraph."""
        found, line = [], ""
        for child in node.children:
            if _is_text(child):
                line += self.inline(child)
                continue
            if line.strip():
                found.append(line.strip())
            line = ""
            found += self.blocks(child, depth)
        return [*found, line.strip()] if line.strip() else found

    def _document(self, node, depth):
        return self._children(node, depth)

    def _section(self, node, depth):
        return self._children(node, depth + 1)

    def _title(self, node, depth):
        return [f"{'#' * max(1, depth)} {self._line(node)}"]

    def _rubric(self, node, depth):
        return [f"**{self._line(node)}**"]

    _dropdown_title = _rubric

    def _paragraph(self, node, depth):
        text = "\n".join(line.strip() for line in self.inlines(node).split("\n")).strip()
        # What would start a heading, a list or a table row at the head of a line is text.
        return [re.sub(r"(?m)^(#+ |[-+] |\|)", r"\\\1", re.sub(r"(?m)^(\d+)([.)]) ", r"\1\\\2 ", text))] if text else []

    _caption = _paragraph

    def _block_quote(self, node, depth):
        return [_quoted(self._children(node, depth))]

    def _line_block(self, node, depth):
        return ["  \n".join(self._line(line) for line in node.children)]

    def _bullet_list(self, node, depth):
        return [_list((self._children(item, depth) for item in node.children), lambda i: "- ")]

    def _enumerated_list(self, node, depth):
        start = node.get("start", 1)
        return [_list((self._children(item, depth) for item in node.children), lambda i: f"{start + i}. ")]

    def _definition_list(self, node, depth):
        return [block for item in node.children for block in self._definition_list_item(item, depth)]

    def _definition_list_item(self, node, depth):
        terms = [_anchors(child) + self._line(child) for child in node.children if isinstance(child, nodes.term)]
        bodies = [b for c in node.children if isinstance(c, nodes.definition) for b in self._children(c, depth)]
        return [f"**{', '.join(terms)}**: {bodies[0] if bodies else ''}".rstrip(), *bodies[1:]]

    def _field_list(self, node, depth):
        items = []
        for field in node.children:
            name, body = field.children
            items.append([f"{self._line(name)}: " + "\n\n".join(self._children(body, depth))])
        return [_list(items, lambda i: "- ")]

    def _desc(self, node, depth):
        return self._children(node, depth)

    def _desc_signature(self, node, depth):
        return [f"**`{' '.join(node.astext().split())}`**"]

    def _literal_block(self, node, depth):
        return [fenced(node.astext(), {"ipython3": "python", "none": ""}.get(lang := node.get("language", ""), lang))]

    _doctest_block = _literal_block

    def _math_block(self, node, depth):
        number = self._first_number("displaymath", node)
        tag = f" \\tag{{{number}}}" if number else ""
        return [f"$$\n{node.astext().strip()}{tag}\n$$"]

    def _transition(self, node, depth):
        return ["---"]

    def _image(self, node, depth):
        return [f"*Picture: {escape(node['alt'])}*"] if node.get("alt") else []

    def _figure(self, node, depth):
        number = self._first_number("figure", node)
        found = []
        for child in node.children:
            if isinstance(child, nodes.caption):
                head = f"**Figure {number}.** " if number else ""
                found.insert(0, head + self._line(child))
            else:
                found += self.blocks(child, depth)
        return found

    def figure_caption(self, node: nodes.Element) -> list[str]:
        """Return only the numbered captions of the figures in a node."""
        return [self._figure(figure, 0)[0] for figure in node.findall(nodes.figure)]

    def _table(self, node, depth):
        titles = [f"*{self._line(child)}*" for child in node.children if isinstance(child, nodes.title)]
        rows = [[self._cell(entry) for entry in row.children] for row in node.findall(nodes.row)]
        return [*titles, table(rows)]

    def _cell(self, entry) -> str:
        return "<br>".join(block.replace("\n", " ") for block in self._children(entry, 0))

    def _container(self, node, depth):
        if node.get("nb_element") == "cell_code":
            return self.on_cell(node) if self.on_cell else self._shown_cell(node, depth)
        return self._children(node, depth)

    def _shown_cell(self, node, depth):
        """Write what the page shows without a click, and results that it hides."""
        found = []
        for part in node.findall(nodes.container):  # MyST-NB wraps hidden parts once more
            is_code = part.get("nb_element") == "cell_code_source" and "hide_mode" not in node
            if is_code or part.get("nb_element") == "cell_code_output":
                found += self._children(part, depth)
        return found

    def _bibliography(self, node, depth):
        return self._children(node, depth)

    def _citation(self, node, depth):
        body = [c for c in node.children if not isinstance(c, nodes.label)]
        return [_list([[b for c in body for b in self.blocks(c, depth)]], lambda i: "- ")]

    def _footnote(self, node, depth):
        label, *body = node.children
        return [f"[{label.astext()}] " + "\n\n".join(b for c in body for b in self.blocks(c, depth))]

    # --- text ---

    def inlines(self, node: nodes.Element) -> str:
        """Return the children of a text element as one string."""
        return "".join(self.inline(child) for child in node.children)

    def _line(self, node: nodes.Element) -> str:
        return " ".join(self.inlines(node).split())

    def inline(self, node: nodes.Node) -> str:
        """Return one inline node."""
        name = type(node).__name__
        if isinstance(node, nodes.Text):
            return escape(node.astext())
        if isinstance(node, nodes.raw):
            return self._html_inline(node.astext()) if node.get("format") == "html" else ""
        if name == "Result":  # chipbook's glued result, with its badges
            return self._html_inline(node["html"])
        if isinstance(node, nodes.emphasis):
            return f"*{self.inlines(node)}*"
        if isinstance(node, nodes.strong):
            return f"**{self.inlines(node)}**"
        if isinstance(node, nodes.literal):
            return code(node.astext())
        if isinstance(node, nodes.math):
            return f"${node.astext().strip()}$"
        if isinstance(node, nodes.superscript):
            return f"<sup>{self.inlines(node)}</sup>"
        if isinstance(node, nodes.subscript):
            return f"<sub>{self.inlines(node)}</sub>"
        if isinstance(node, nodes.footnote_reference):
            return f"[{node.astext()}]"
        if isinstance(node, nodes.reference):
            return self._reference(node)
        if isinstance(node, nodes.image):
            return escape(node.get("alt", ""))
        if name.startswith("desc_"):
            return escape(node.astext())
        if name in INLINE_WRAPPERS:
            return self.inlines(node)
        if isinstance(node, SKIPPED) or name in SKIPPED_NAMES:
            return ""
        raise ExtensionError(f"no Markdown for a <{name}> in running text: {node.astext()[:80]!r}")

    def _reference(self, node) -> str:
        text = self.inlines(node)
        address = node.get("refuri") or (f"#{node['refid']}" if node.get("refid") else "")
        target = self.link(address) if address else None
        return f"[{text}]({target})" if target and text.strip() else text

    # --- results, which are HTML ---

    def _html_inline(self, html: str) -> str:
        soup = BeautifulSoup(html, "html.parser")
        if soup.select(".evidence"):
            return self._value(soup)
        # <sub>, </sub> and the like Markdown takes as they are; the theme's icons say nothing.
        return "" if html.lstrip().startswith("<svg") else html

    def _value(self, element: Tag) -> str:
        """Return the text of an element that holds one value and its badges."""
        kinds = [_kind(badge) for badge in element.select(".evidence")]
        text = "".join(t for t in element.strings if not any("evidence" in p.get("class", []) for p in t.parents))
        return escape(" ".join(text.split(" ")).strip()) + (self.badge(kinds) if kinds else "")

    def _html_blocks(self, html: str) -> list[str]:
        soup = BeautifulSoup(html, "html.parser")
        for script in soup(["script", "style"]):
            script.decompose()
        found = []
        for element in soup.select("table"):
            caption = element.find("caption")
            rows = [[self._value(cell) for cell in row(["th", "td"])] for row in element("tr")]
            if len(rows) > 1:  # an explorer's script fills others
                found += [f"*{escape(caption.get_text())}*"] if caption else []
                found.append(table(rows))
        for picture in soup.select("svg.wide, img[alt]"):
            found.append(f"*Picture: {escape(picture.get('aria-label') or picture['alt'])}*")
        lines = soup.select(".evidence-line")
        if not found and not soup.find("form"):
            text = self._value(soup)
            return [text] if text.strip() else []
        found += [" ".join(f"({self._label(badge)})" for badge in line.select(".evidence")) for line in lines]
        return found

    def _label(self, badge: Tag) -> str:
        """Return what a table or figure rests on; "computed" says it all, the other kinds name their source."""
        kind = _kind(badge)
        if kind == "computed":
            return kind
        about = badge["aria-label"].removeprefix(f"{kind}: ")
        return escape(f"{badge.get_text()}: {self.sources.get(badge.get('data-cite'), about)}")

    def _first_number(self, kind: str, node: nodes.Element) -> str:
        labelled = [f"equation-{nodes.make_id(node['label'])}"] if node.get("label") else []
        known = self.numbers.get(kind, {})
        return next(
            (".".join(map(str, known[name])) for name in [*node.get("ids", []), *labelled] if name in known), ""
        )


def _anchors(term: nodes.term) -> str:
    """Return the places that links to a term of the glossary lead to, as other headings have none in Markdown."""
    return "".join(f'<a id="{name}"></a>' for name in term["ids"] if name.startswith(TERM))


def _is_text(node: nodes.Node) -> bool:
    """Return whether a node stands in running text; docutils counts raw HTML and pictures to it, whatever they are."""
    if isinstance(node, nodes.raw):
        return node.get("format") == "html" and not re.search(r"<(div|table|form|figure|p|script)\b", node.astext())
    own_line = isinstance(node, (nodes.image, nodes.target)) or type(node).__name__ == "desc_signature"
    return isinstance(node, (nodes.Text, nodes.Inline)) and not own_line


def escape(text: str) -> str:
    """Return text in which nothing is Markdown."""
    text = re.sub(r"([\\`*\[\]$<])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def code(text: str) -> str:
    """Return text as inline code, whatever backticks it holds."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def fenced(text: str, language: str = "") -> str:
    """Return a code block."""
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(rows: list[list[str]]) -> str:
    """Return a table whose first row is its head; short rows are filled up."""
    width = max(len(row) for row in rows)
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] + [""] * (width - len(row)) for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * width, *lines[1:]])


def _list(items: Iterable[list[str]], marker: Callable[[int], str]) -> str:
    lines = []
    for i, blocks in enumerate(items):
        head = marker(i)
        body = "\n\n".join(blocks).replace("\n", "\n" + " " * len(head))
        lines.append(head + re.sub(r"(?m)^ +$", "", body))
    return "\n".join(lines)


def _quoted(blocks: list[str]) -> str:
    return "\n".join(f"> {line}".rstrip() for line in "\n\n".join(blocks).split("\n"))


def _kind(badge: Tag) -> str:
    (kind,) = [name.removeprefix("evidence-") for name in badge["class"] if name.startswith("evidence-")]
    return kind
