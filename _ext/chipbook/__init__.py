"""The book's own Sphinx extension: what no healthy extension does.

execution.py  a cache that notices every change that can change a result; pages executed side by side, with progress
badges.py     the role ``{evidence}`key```; badges of cited results linked to the bibliography; typed badges refused
head.py       what a page loads and how its first paint looks
here          the table of corrections; reading time; date and commit of each page
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from mdit_py_plugins.wordcount import basic_count
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective, SphinxRole

from chipbook import badges, head
from chipbook.badges import quote_page
from chipbook.execution import execute_pages, set_execution_cache


class PendingReadingTime(nodes.Element):
    """The reading time of a page, filled in when all pages are read."""


class ReadingTimeRole(SphinxRole):
    """``{reading-time}`page```: minutes to read a page's prose, dropdowns closed, from MyST's own word count."""

    def run(self):
        """Leave a placeholder: the other page may not have been read yet."""
        return [PendingReadingTime("", docname=quote_page(self.env, self.text), line=self.lineno)], []


def leave_out_folded_words(app, doctree):
    """Take the words in dropdowns out of MyST's count: the reading time is that of the main line."""
    count = app.env.metadata[app.env.docname].get("wordcount")
    dropdowns = [box for box in doctree.findall(nodes.container) if box.get("design_component") == "dropdown"]
    folded = [part for box in dropdowns for part in box.children if not isinstance(part, nodes.rubric)]  # the title
    texts = [text for part in folded for text in part.findall(nodes.Text)]
    if texts:
        words = sum(
            basic_count(text) for text in texts if not isinstance(text.parent, nodes.literal | nodes.literal_block)
        )
        count["words"] -= words
        count["minutes"] = round(count["words"] / app.config.myst_words_per_minute)


class FillReadingTimes(SphinxPostTransform):
    """Replace placeholders by reading times."""

    default_priority = 5

    def run(self, **kwargs):
        """Fill in every placeholder of this page."""
        for node in list(self.document.findall(PendingReadingTime)):
            if node["docname"] not in self.env.all_docs:
                raise ExtensionError(f"{self.env.docname}:{node['line']}: no page {node['docname']!r} to read")
            minutes = self.env.metadata[node["docname"]]["wordcount"]["minutes"]
            node.replace_self(nodes.Text(f"{max(1, minutes)} min read"))


class Corrections(SphinxDirective):
    """``{corrections} article``: the entries of corrections.yml for one article, as a table.

    Each text is MyST, so that a right value is a glued result: ``right: "{evidence}`bytes_per_value`"``.
    """

    required_arguments = 1

    def run(self):
        """Write the table as Markdown and let MyST parse it, roles and links included."""
        path = Path(self.env.srcdir) / "corrections.yml"
        self.env.note_dependency(str(path))
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        article = self.arguments[0]
        if article not in entries:
            raise ExtensionError(f"{self.env.docname}: corrections.yml has no {article!r}, only {', '.join(entries)}")
        if not entries[article]:
            return [nodes.paragraph("", "Nothing so far.")]
        lines = [
            ":::{list-table} What the first edition said, and what holds",
            ":header-rows: 1",
            "",
            "* - The first edition",
            "  - What holds",
            "  - Shown in",
        ]
        for entry in entries[article]:
            lines += [f"* - {entry['claim']}", f"  - {entry['right']}", f"  - {entry['shown']}"]
        table = nodes.container(classes=["corrections"])
        self.state.nested_parse(StringList([*lines, ":::"], source=str(path)), self.content_offset, table)
        return [table]


def date_page(app, pagename, templatename, context, doctree) -> None:
    """Show the date and commit of the page's last change; show nothing where git does not know it.

    Without git, for an uncommitted page, and in a shallow clone, where git takes its oldest commit for every change.
    """
    context["last_updated"] = None
    if doctree is None or not shutil.which("git") or _git(app, "rev-parse", "--is-shallow-repository") != "false":
        return
    context["last_updated"] = (
        _git(app, "log", "-1", "--format=%cs, commit %h", "--", app.env.doc2path(pagename)) or None
    )


def _git(app, *arguments: str) -> str:
    """Return what git prints about the book; nothing outside a repository."""
    found = subprocess.run(["git", *arguments], cwd=app.srcdir, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def setup(app):
    """Register everything with Sphinx."""
    # Priorities: the cache path must stand before MyST-NB reads its configuration at builder-inited.
    app.add_config_value("executed_first", [], "", list)
    app.connect("config-inited", set_execution_cache)
    app.connect("env-before-read-docs", execute_pages)
    badges.setup(app)
    app.connect("html-page-context", date_page)
    head.setup(app)
    app.connect("doctree-read", leave_out_folded_words)
    app.add_role("reading-time", ReadingTimeRole())
    app.add_directive("corrections", Corrections)
    app.add_node(PendingReadingTime)
    app.add_post_transform(FillReadingTimes)
    # MathJax comes from here, not from _static/, whose scripts Jupyter Book loads on every page.
    app.config.html_static_path.append(str(Path(app.srcdir) / "_vendor"))
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
