"""Progress of long work, in a notebook one line that changes in place, on a terminal a line a second at most."""

from __future__ import annotations

import sys
import time

CELLS = 24
SECONDS = 0.5  # between two updates


class NotebookBar:
    """A bar for a page's cell: call it with steps done, their total, and what is under way.

    what   said before anything starts: what will be done, and how long that takes
    """

    def __init__(self, what: str):
        """Say what is about to happen."""
        from IPython.display import DisplayHandle  # in every notebook, and not where only the command runs

        self.what, self.handle, self.started, self.shown = what, DisplayHandle(), time.monotonic(), 0.0
        self.handle.display(self._bundle(f"{what}: starting"), raw=True)

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show the bar; the last line tells no time, so that a page built twice is the same."""
        if done >= total:
            self.handle.update(self._bundle(f"{self.what}: done, {total:,} steps"), raw=True)
        elif time.monotonic() - self.shown > SECONDS:
            self.shown = time.monotonic()
            full = CELLS * done // total
            left = _left(self.shown - self.started, done, total)
            line = f"{'█' * full}{'░' * (CELLS - full)} {done:,} of {total:,} steps{left}; {text}"
            self.handle.update(self._bundle(line), raw=True)

    @staticmethod
    def _bundle(text: str) -> dict[str, str]:
        return {"text/plain": text}


class TerminalLines:
    """The same for a terminal's standard error."""

    def __init__(self, name: str):
        """``name`` begins every line."""
        self.name, self.started, self.shown = name, time.monotonic(), 0.0

    def __call__(self, done: int, total: int, text: str) -> None:
        """Print at most a line a second."""
        if done == total or time.monotonic() - self.shown > 1:
            self.shown = time.monotonic()
            left = _left(self.shown - self.started, done, total)
            print(f"  {self.name}: {done}/{total} steps{left}; {text}", file=sys.stderr, flush=True)


def _left(seconds: float, done: int, total: int) -> str:
    """What the steps so far say of the rest: who sees hours may rather stop now."""
    return f", about {seconds / done * (total - done):.0f} s left" if 0 < done < total else ""
