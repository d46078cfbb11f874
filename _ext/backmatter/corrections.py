"""Every entry of ``corrections.yml`` on one page: of the first editions, and dated changes of the book's own."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

CHANGES = "changes"  # the key of corrections.yml whose entries are not of an article's first edition
FIELDS = ("date", "page", "was", "now")


class Entries(SphinxDirective):
    """A directive that shows a part of corrections.yml; its texts are MyST."""

    def read(self) -> dict:
        """Return the file, whose changes then change this page."""
        path = Path(self.env.srcdir) / "corrections.yml"
        self.env.note_dependency(str(path))
        return yaml.safe_load(path.read_text(encoding="utf-8"))

    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        """Return Markdown lines as nodes, in the box that styles such tables."""
        box = nodes.container(classes=["corrections"])
        self.state.nested_parse(StringList(lines, source="corrections.yml"), self.content_offset, box)
        return [box]


class AllCorrections(Entries):
    """``{all-corrections} article``: what a first edition said and what holds, with the article's own results."""

    required_arguments = 1

    def run(self):
        """Quote the article's results from this page."""
        article, entries = self.arguments[0], self.read()
        if article == CHANGES or article not in entries:
            known = ", ".join(name for name in entries if name != CHANGES)
            raise ExtensionError(f"{self.env.docname}: corrections.yml has no article {article!r}, only {known}")
        rows = [(entry["claim"], entry["right"], entry["shown"]) for entry in entries[article]]
        lines = listed(
            "What the first edition said, and what holds", ("The first edition", "What holds", "Shown in"), rows
        )
        return self.parsed([quoted_from(f"chapters/{article}", line) for line in lines])


class Changes(Entries):
    """``{changes}``: what this book itself once said and no longer says, the newest first."""

    def run(self):
        """Check the entries and list them."""
        entries = self.read().get(CHANGES, [])
        for entry in entries:
            if sorted(entry) != sorted(FIELDS) or not isinstance(entry["date"], date):
                raise ExtensionError(f"corrections.yml, {CHANGES}: {entry!r} needs a date and {', '.join(FIELDS[1:])}")
            if entry["page"] not in self.env.found_docs:
                raise ExtensionError(f"corrections.yml, {CHANGES}: there is no page {entry['page']!r}")
        rows = [
            (f"{entry['date']:%Y-%m-%d}", f"{{doc}}`/{entry['page']}`", entry["was"], entry["now"])
            for entry in sorted(entries, key=lambda entry: entry["date"], reverse=True)
        ]
        return (
            self.parsed(
                listed("What this book said, and what it says now", ("Date", "Page", "Until then", "Now"), rows)
            )
            if rows
            else [nodes.paragraph("", "Nothing so far.")]
        )


def listed(caption: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return a MyST list-table."""
    lines = [f":::{{list-table}} {caption}", ":header-rows: 1", ""]
    for row in (head, *rows):
        first, *rest = row
        lines += [f"* - {first}", *(f"  - {cell}" for cell in rest)]
    return [*lines, ":::"]


def quoted_from(docname: str, text: str) -> str:
    """Return text whose results are those that another page glues."""
    return re.sub(r"\{evidence\}`([^`:]+)`", rf"{{evidence}}`../{docname}::\1`", text)


def setup(app):
    """Register with Sphinx."""
    app.add_directive("all-corrections", AllCorrections)
    app.add_directive("changes", Changes)
