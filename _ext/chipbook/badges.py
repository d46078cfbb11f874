"""Badges: shown only where a result object of chipmath.evidence put them.

An output of a cell counts as a result if its metadata holds the digest that result objects write. Its badges must name
a committed recording, a source in references.bib, or a GPU of this machine. The rule is then the same however a badge
came into a page: what is neither such an output nor a glued result, and yet has a badge's class, fails the build. It is
applied twice: to the document as it is read, where file and line are known, and to the finished page, which alone shows
what a browser gets.

A page has no HTML of its own besides a few bare tags: a script or a style could paint a badge that no class betrays.
The outputs of cells are always this build's: what a notebook brings along is thrown away (execution.py).

This keeps page authors from typing, copying or assembling a badge. It does not keep them from wrapping a typed number
in ``Computed``, from code in a cell that imitates chipmath.evidence down to its digest, nor anybody from changing this
module.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections import Counter
from functools import lru_cache
from html import escape, unescape
from pathlib import Path
from typing import ClassVar

from bs4 import BeautifulSoup, NavigableString, Tag
from docutils import nodes
from myst_nb.core.variables import RetrievalError
from myst_nb.ext.glue.crossref import read_glue_cache
from myst_nb.ext.glue.domain import NbGlueDomain
from myst_nb.ext.glue.utils import retrieve_glue_data
from pybtex.database import parse_file
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective, SphinxRole

from chipbook.execution import executed_cells, gpus

METADATA_KEY = "chipmath-evidence"  # written by chipmath.evidence, which a build must not import: cells import it
TYPED = "a badge is typed by hand; glue or display a result of chipmath.evidence instead"
FOREIGN = "HTML that is no result of chipmath.evidence; write Markdown, or glue or display a result"
BARE_TAG = re.compile(r"</?(sup|sub|kbd|br)>")  # the HTML that a page may write itself
KINDS = ("computed", "compiled", "measured", "cited")
ACTIVE = ("script", "style", "link", "iframe", "object", "embed")  # can show what their own text does not


class Result(nodes.inline):
    """A glued result in running text: its text for every format, ``html`` with the badge for HTML."""


class ResultHTML(nodes.raw):
    """HTML that holds results and is checked: an output of a cell, or what an extension of the book writes."""


class PendingEvidence(nodes.Element):
    """A result of another page, filled in when all pages are read."""


# --- checking -------------------------------------------------------------------------------------------------------


def is_badge_class(name: str) -> bool:
    """Whether a class is one of those that make a badge."""
    return re.fullmatch(r"evidence(-.*)?", name.casefold()) is not None


def badges(html: str) -> list[Tag]:
    """Return every element with a badge's class: the badges, the values beside them and the lines that hold them."""
    if "evidence" not in unescape(html).casefold():
        return []  # most of a page; parsing all of it would take seconds
    soup = BeautifulSoup(html, "html.parser", on_duplicate_attribute=_join)
    found = [tag for tag in soup.find_all(True) if any(map(is_badge_class, tag.get_attribute_list("class", [])))]
    # Comments, scripts and style sheets too: browsers end some of them earlier than this parser does.
    for hidden in soup.find_all(string=lambda text: type(text) is not NavigableString):
        found += badges(hidden)
    return found


def _join(attributes: dict[str, str], name: str, value: str) -> None:
    """Keep both values of a repeated attribute: browsers take the first, the parser by itself the last."""
    attributes[name] = f"{attributes[name]} {value}"


def errors_of(data: dict[str, str], metadata: dict, root: Path) -> list[str]:
    """Say what is wrong with a display that claims to be a result: changed, or with badges that name nothing.

    data, metadata  as a cell displayed or glued them
    root            the book's folder
    """
    html, text = data.get("text/html", ""), data.get("text/plain", "")
    written = hashlib.sha256("\0".join((METADATA_KEY, html, text)).encode()).hexdigest()
    mark = metadata.get(METADATA_KEY)
    if not isinstance(mark, dict) or mark.get("sha256") != written:
        return [f"not as a result of chipmath.evidence displays itself: {text[:80]!r}"]
    found = [_active_error(html), *(_badge_error(badge, root) for badge in badges(html))]
    return [error for error in found if error]


def _active_error(html: str) -> str:
    """Say which element of a result could show something else than it holds."""
    for tag in BeautifulSoup(html, "html.parser").find_all(True):
        if tag.name in ACTIVE or any(name.startswith("on") for name in tag.attrs):
            return f"a result holds a script, a style or a frame: {str(tag)[:80]!r}"
    return ""


def _badge_error(badge: Tag, root: Path) -> str:
    """Say what is wrong with an element that has a badge's class."""
    names = [name for name in badge["class"] if is_badge_class(name)]
    if names in (["evidence-value"], ["evidence-line"]):
        return ""
    kind = names[-1].removeprefix("evidence-")
    if kind not in KINDS or names != ["evidence", f"evidence-{kind}"]:
        return f"no badge has the classes {' '.join(names)!r}"
    if kind == "cited":
        known = badge.get("data-cite") in bibliography(root)
        return "" if known else f"a result cites {badge.get('data-cite')!r}, which references.bib does not have"
    if kind == "measured" and "data-live" in badge.attrs:
        return "" if gpus() else f"a live result of {badge['data-live']!r}, and this machine has no GPU"
    if kind == "computed" and "data-recording" not in badge.attrs:
        return ""
    return _recording_error(kind, badge.get("data-recording"), badge.get("data-tip", ""), root)


def _recording_error(kind: str, name: str | None, tip: str, root: Path) -> str:
    """Say what is wrong with a badge's recording, or with what its tip says of it."""
    paths = {path.name: path for path in (root / "kernels/chipmath/recorded").glob("*.json")}
    recording = json.loads(paths[name].read_text(encoding="utf-8")) if name in paths else {}
    if recording.get("kind") != kind:
        return f"no {kind} recording {name!r} in kernels/chipmath/recorded/"
    if not (recording["commit"][:7] in tip and recording["taken"][:10] in tip):
        return f"a tip that does not name commit and date of {name}: {tip[:80]!r}"
    return ""


def check_document(app, doctree: nodes.document) -> None:
    """Mark the outputs of cells that are results, and fail where any other node has a badge."""
    env, root = app.env, Path(app.srcdir)
    shown, errors = _results_of_cells(app, root)
    for raw in list(doctree.findall(nodes.raw)):
        if raw.astext() in shown:
            raw.replace_self(ResultHTML(raw.rawsource, raw.astext(), **raw.attributes))
    found = ((node, _typed(node)) for node in doctree.findall(nodes.Element))
    errors += [f"{_place(node, env)}: {error}" for node, error in found if error]
    if errors:
        raise ExtensionError("\n".join(errors))
    if any("data-cite=" in html for html in _written(doctree)):
        env.note_dependency(str(root / "references.bib"))


def _results_of_cells(app, root: Path) -> tuple[set[str], list[str]]:
    """Return the HTML of every result that a cell of this page displays, and what is wrong with the others."""
    shown, errors, page = set(), [], app.env.docname
    for number, cell in enumerate(executed_cells(app, page), 1):
        for output in cell.outputs:
            data, metadata = output.get("data", {}), output.get("metadata", {})
            if metadata.get("scrapbook", {}).get("mime_prefix"):
                continue  # glued and not displayed: the role that quotes it checks it
            if METADATA_KEY in metadata:
                errors += [f"{page}, code cell {number}: {error}" for error in errors_of(data, metadata, root)]
                shown.add(data["text/html"])
            elif badges(data.get("text/html", "")):
                errors.append(f"{page}, code cell {number}: {TYPED}")
                shown.add(data["text/html"])
    return shown, errors


def _typed(node: nodes.Element) -> str:
    """Say what is wrong with a node that the page's author wrote; nothing, mostly."""
    if any(map(is_badge_class, node.get("classes", []))):
        return TYPED
    if not isinstance(node, nodes.raw) or isinstance(node, ResultHTML):
        return ""
    if badges(node.astext()):
        return TYPED
    is_html = "html" in node["format"].split()
    return FOREIGN if is_html and not BARE_TAG.fullmatch(node.astext().strip()) else ""


def _place(node: nodes.Node, env) -> str:
    """File and line of a node, or of the nearest one around it that has them."""
    while node.line is None and node.parent is not None:
        node = node.parent
    source = posixpath.relpath(node.source, env.srcdir) if node.source else env.docname
    return f"{source}:{node.line}"


def _written(doctree: nodes.document) -> list[str]:
    """Return the HTML of every result in a document."""
    return [node["html"] for node in doctree.findall(Result)] + [n.astext() for n in doctree.findall(ResultHTML)]


def check_page(app, pagename, templatename, context, doctree) -> None:
    """Fail where the finished page holds a badge more than its results wrote."""
    found = Counter(map(str, badges(context.get("body", ""))))
    if not found:
        return
    extra = found - Counter(str(badge) for html in _written(doctree) for badge in badges(html))
    if extra:
        raise ExtensionError(f"{pagename}: {TYPED}: {next(iter(extra))[:80]}")


# --- results in running text ----------------------------------------------------------------------------------------


class EvidenceRole(SphinxRole):
    """``{evidence}`key``` or ``{evidence}`page::key```: a glued result; anything else fails the build."""

    def run(self):
        """Return the result, or a placeholder where it belongs to another page."""
        where = f"{self.env.docname}:{self.lineno}"
        page, separator, key = self.text.rpartition("::")
        if separator:
            docname = quote_page(self.env, page)
            return [PendingEvidence("", docname=docname, key=key, where=where)], []
        try:
            glued = retrieve_glue_data(self.inliner.document, key)
        except RetrievalError as error:
            raise ExtensionError(f"{where}: {{evidence}}`{key}`: {error}") from None
        return [_result(glued.data, glued.metadata, self.env, where, key)], []


class FillResults(SphinxPostTransform):
    """Replace placeholders by what other pages glued."""

    default_priority = 5

    def run(self, **kwargs):
        """Fill in every placeholder of this page."""
        for node in list(self.document.findall(PendingEvidence)):
            glued = read_glue_cache(self.env.mystnb_config.output_folder, node["docname"]).get(node["key"])
            if glued is None:
                raise ExtensionError(f"{node['where']}: {node['docname']} glues no {node['key']!r}")
            node.replace_self(_result(glued["data"], glued.get("metadata", {}), self.env, node["where"], node["key"]))


def _result(data: dict, metadata: dict, env, where: str, key: str) -> Result:
    if METADATA_KEY not in metadata:
        shown = data.get("text/plain")
        raise ExtensionError(f"{where}: {{evidence}}`{key}` is not a result of chipmath.evidence, but {shown}")
    if errors := errors_of(data, metadata, Path(env.srcdir)):
        raise ExtensionError(f"{where}: {'; '.join(errors)}")
    return Result(data["text/plain"], data["text/plain"], html=data["text/html"])


def write_result(translator, node: Result) -> None:
    """Write a result into an HTML page; other formats write its text."""
    translator.body.append(node["html"])
    raise nodes.SkipNode


def quote_page(env, page: str) -> str:
    """Return the name of the page that this one quotes, and have this one read again when that one has changed."""
    docname = posixpath.normpath(posixpath.join(posixpath.dirname(env.docname), page))
    env.metadata[env.docname].setdefault("quoted_pages", []).append(docname)
    return docname


def pages_quoting_changed(app, env, added, changed, removed) -> list[str]:
    """Name the pages that quote a page which has changed."""
    quoted = {page: set(about.get("quoted_pages", ())) for page, about in env.metadata.items()}
    return [page for page, others in quoted.items() if others & (added | changed) and page in env.found_docs]


class BareGlueRole(SphinxRole):
    """MyST-NB's own roles for glued values, which show a result without its badge: they fail the build."""

    def run(self):
        """Refuse."""
        raise ExtensionError(f"{self.env.docname}:{self.lineno}: {{{self.name}}} shows a result bare; use {{evidence}}")


class BareGlueDirective(SphinxDirective):
    """The same as a directive."""

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self):
        """Refuse."""
        raise ExtensionError(f"{self.env.docname}:{self.lineno}: {{{self.name}}} shows a result bare; use {{evidence}}")


class BareGlueDomain(NbGlueDomain):
    """``{glue:text}`` and its like."""

    roles: ClassVar = {name: BareGlueRole() for name in NbGlueDomain.roles}
    directives: ClassVar = dict.fromkeys(NbGlueDomain.directives, BareGlueDirective)


# --- cited results --------------------------------------------------------------------------------------------------


def link_cited(app, pagename, templatename, context, doctree) -> None:
    """Turn every badge of a cited result into a link to its source."""
    if "data-cite=" not in context.get("body", ""):
        return
    entries = bibliography(Path(app.srcdir))
    page = context["pathto"]("references").partition("#")[0]  # on that page itself, and in a single page: only "#…"

    def linked(badge):
        key = badge["key"]
        text = escape(entries[key])
        return (
            f'<a class="evidence evidence-cited" href="{page}#cite-{key.lower()}" data-cite="{key}" '
            f'aria-label="cited: {text}" data-tip="{text}">{badge["label"]}</a>'
        )

    cited = r'<span class="evidence evidence-cited"[^>]* data-cite="(?P<key>[^"]*)"[^>]*>(?P<label>[^<]*)</span>'
    context["body"] = re.sub(cited, linked, context["body"])


# --- values that are longer than a number ---------------------------------------------------------------------------

VALUE = re.compile(r'(?<=<span class="evidence-value">)[^<]{13,}(?=<)')
# a list's comma, a word's end, and within an instruction's name a dot or an underscore; never beside a sign or a unit
BREAKS = re.compile(
    r"(?<=[,;] )|(?<=[a-z]{2} )(?=[a-z])|(?<=[a-z0-9]{2}_)(?=[a-z0-9])|(?<=[A-Za-z0-9]\.)(?=[A-Z0-9]*[A-Z])"
)


def break_long_values(app, pagename, templatename, context, doctree) -> None:
    """Let a list or a long name break across lines, where a value and its badge otherwise stay on one."""
    body = context.get("body", "")
    if "evidence-value" in body:
        context["body"] = VALUE.sub(lambda value: BREAKS.sub("<wbr>", value[0]), body)


def bibliography(root: Path) -> dict[str, str]:
    """Return one plain line for each key of references.bib."""
    path = root / "references.bib"
    return _read_bibliography(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_bibliography(path: Path, modified: int) -> dict[str, str]:
    lines = {}
    for key, entry in parse_file(str(path)).entries.items():
        names = [" ".join(person.last_names) for person in entry.persons.get("author", [])]
        authors = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        fields = [authors, entry.fields["title"], entry.fields["year"]]
        lines[key] = ", ".join(re.sub(r"[{}\\]", "", field) for field in fields)
    return lines


def setup(app) -> None:
    """Register roles, nodes and checks."""
    app.setup_extension("myst_nb")  # whose roles are replaced
    app.add_role("glue", BareGlueRole(), override=True)
    app.add_directive("glue", BareGlueDirective, override=True)
    app.add_domain(BareGlueDomain, override=True)
    app.add_role("evidence", EvidenceRole())
    app.add_node(Result, html=(write_result, None))
    app.add_node(ResultHTML)
    app.add_node(PendingEvidence)
    app.add_post_transform(FillResults)
    app.connect("env-get-outdated", pages_quoting_changed)
    app.connect("doctree-read", check_document)
    app.connect("html-page-context", check_page)
    app.connect("html-page-context", link_cited)
    app.connect("html-page-context", break_long_values)
