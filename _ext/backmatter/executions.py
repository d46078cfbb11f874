"""``{executions}``: when each page was executed and for how long, filled in once every page is read."""

from __future__ import annotations

from datetime import datetime

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from portable.pages import chapters
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective


class PendingExecutions(nodes.General, nodes.Element):
    """The table's place."""


class Executions(SphinxDirective):
    """``{executions}``: a table of all executed pages."""

    def run(self):
        """Leave a placeholder: pages after this one have not been read."""
        self.env.metadata[self.env.docname]["shows_executions"] = True
        return [PendingExecutions()]


class FillExecutions(SphinxPostTransform):
    """Replace the placeholder by the table."""

    default_priority = 5  # before references are resolved

    def run(self, **kwargs):
        """Fill in every placeholder of this page."""
        for node in list(self.document.findall(PendingExecutions)):
            node.replace_self(_table(_rows(self.env), self.env.docname))


def _rows(env) -> list[tuple[str, str, str]]:
    """Return every executed page, the start of the build that executed it, and seconds, in the order of the book."""
    rows = []
    for docname in (page for _, pages in chapters(env.app) for page in pages):
        run = NbMetadataCollector.get_exec_data(env, docname)
        if run:
            # jupyter-cache keeps UTC without saying so; MyST-NB took it for local time, and this takes that back.
            moment = datetime.fromtimestamp(run["mtime"])
            rows.append((docname, f"{moment:%Y-%m-%d %H:%M}", f"{run['runtime']:.1f}"))
    return rows


def _table(rows, docname: str) -> nodes.table:
    head = ("Page", "Executed by the build of, UTC", "Seconds")
    table = nodes.table(classes=["colwidths-auto"])
    group = nodes.tgroup(cols=len(head))
    table += group
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", nodes.row("", *(_cell(nodes.Text(text)) for text in head)))
    lines = [(_link(page, docname), *map(nodes.Text, rest)) for page, *rest in rows]
    group += nodes.tbody("", *(nodes.row("", *map(_cell, line)) for line in lines))
    return table


def _cell(content: nodes.Node) -> nodes.entry:
    return nodes.entry("", nodes.paragraph("", "", content))


def _link(page: str, docname: str) -> addnodes.pending_xref:
    attributes = {"refdoc": docname, "refdomain": "std", "reftype": "doc", "reftarget": f"/{page}"}
    return addnodes.pending_xref("", nodes.inline(), refexplicit=False, refwarn=True, **attributes)


def pages_to_update(app, env) -> list[str]:
    """Have the table written again when any page was executed again."""
    if not NbMetadataCollector.new_exec_data(env):
        return []
    return [page for page, facts in env.metadata.items() if facts.get("shows_executions")]


def setup(app):
    """Register with Sphinx."""
    app.add_node(PendingExecutions)
    app.add_directive("executions", Executions)
    app.add_post_transform(FillExecutions)
    app.connect("env-updated", pages_to_update)
