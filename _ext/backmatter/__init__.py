"""The reference part of the book: API, glossary tips, execution status, corrections.

api          docstrings of chipmath for sphinx.ext.autodoc
terms        the glossary's definitions as tips wherever a page uses {term}
executions   {executions}: when each page ran, and for how long
corrections  {all-corrections} and {changes}: every entry of corrections.yml on one page
"""

from backmatter import api, corrections, executions, terms


def setup(app):
    """Register all four with Sphinx."""
    for module in (api, corrections, executions, terms):
        module.setup(app)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
