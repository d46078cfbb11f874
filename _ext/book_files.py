"""A changed style sheet, script, extension or citation file has every page written again (not executed again).

Sphinx copies static files, and gives their links a new checksum, only in a build that writes a page.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

WATCHED = ("_static/**/*", "_ext/**/*", "CITATION.cff")


def digest_of_files(root: Path) -> str:
    """Return a digest of names and contents of the watched files."""
    found = {path for pattern in WATCHED for path in root.glob(pattern) if path.is_file()}
    digest = hashlib.sha256()
    for path in sorted(path for path in found if path.suffix != ".pyc"):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def watch_files(app, config) -> None:
    """Make the digest part of the configuration: Sphinx writes all pages when a value of kind "html" changes."""
    config.book_files = digest_of_files(Path(app.srcdir))


def setup(app):
    """Register the above with Sphinx."""
    app.add_config_value("book_files", "", "html")
    app.connect("config-inited", watch_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
