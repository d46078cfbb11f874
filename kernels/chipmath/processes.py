"""What a command owes whoever started it, and the programs that it starts: an end that leaves nothing behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # opened here: not between fork and exec

GRACE_SECONDS = 5.0  # to end in good order, before the system ends it


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a command line and exit with its status.

    `kill` ends it as Ctrl-C does, so that what it started ends too. A reader that has gone away, as ``| head`` does, is
    no error: the status is the shell's for SIGPIPE.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = main()
        sys.stdout.flush()  # here, where the reader's going away can still be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush fails at the end
        status = 128 + signal.SIGPIPE
    except KeyboardInterrupt:  # where the command itself has nothing more to say
        print("interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    sys.exit(status)


def run_group(command: list[str], *, timeout: float | None, **options: Any) -> subprocess.CompletedProcess:
    """`subprocess.run` without ``check``, for a program that starts others: what ends the waiting ends all of them.

    timeout  seconds, or None: no limit. Then subprocess.TimeoutExpired, as from `subprocess.run`, which would end the
             program alone
    options  of `subprocess.Popen`
    """
    with subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent, **options) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:  # Ctrl-C, too: the terminal sends it to this process's group, not to the new one
            _end_group(process)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _end_with_parent() -> None:
    """In the new process: end when the one that waits for it is killed, which has no time to end anything. Linux only.

    A run on a GPU that nobody waits for any more would disturb the next one.
    """
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)


def _end_group(process: subprocess.Popen) -> None:
    """Ask the program and all that it started to end, then end what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(GRACE_SECONDS)
