"""The list of sources: in the order of the alphabet, with a letter after the year where author and year are the same.

pybtex sorts a name in braces, as companies and projects have it, by its brace, behind all persons.
"""

from __future__ import annotations

from itertools import groupby

from pybtex.plugin import register_plugin
from pybtex.style.formatting.alpha import Style
from pybtex.style.sorting.author_year_title import SortingStyle

STYLE = "book"  # bibtex_default_style of _config.yml


class ByName(SortingStyle):
    """Sort by author, year and title, braces aside."""

    def sorting_key(self, entry) -> tuple[str, ...]:
        """Return what pybtex sorts by, without braces and capitals."""
        return tuple(part.translate({ord("{"): "", ord("}"): ""}).casefold() for part in super().sorting_key(entry))


class Sources(Style):
    """The style of sphinxcontrib-bibtex, sorted by name."""

    def __init__(self, **options):
        """Replace the sorting style, which pybtex would look up by name."""
        super().__init__(**options)
        self.sort = ByName().sort


def tell_apart(app) -> None:
    """Add a, b, … to the years of sources that a page would cite by the same words, and list them in that order."""
    entries = app.env.get_domain("cite").bibdata.data.entries.values()
    for _, alike in groupby(ByName().sort(entries), _cited_as):
        group = list(alike)
        for entry, letter in zip(group, "abcdefghijklmnopqrstuvwxyz", strict=False):
            if len(group) > 1:
                entry.fields["year"] += letter


def _cited_as(entry) -> tuple[str, str]:
    """Return the first author's name and the year, the latter with its letter where an earlier build added one."""
    return " ".join(entry.persons["author"][0].last_names), entry.fields["year"]


def setup(app):
    """Register the style and the letters."""
    register_plugin("pybtex.style.formatting", STYLE, Sources)
    app.connect("builder-inited", tell_apart, priority=600)  # sphinxcontrib-bibtex reads the file at 500
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
