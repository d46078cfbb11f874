"""Commands and the programs that they start: one ends with all that it started, and a reader may go away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chipmath import processes
from chipmath.processes import run_group
from conftest import ROOT

# Starts a sleeper, tells its number, and waits; the second one ignores the request to end.
PARENT = """
import pathlib, subprocess, sys
sleeper = subprocess.Popen([sys.executable, "-c", "{sleeper}"])
pathlib.Path(sys.argv[1]).write_text(str(sleeper.pid))
sleeper.wait()
"""
OBEDIENT = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
# A command that runs PARENT in a group of its own, as the experiment with a profiler does inside bench.
NESTED = """
import sys
from chipmath.processes import leave, run_group
leave(lambda: run_group([sys.executable, "-c", {parent!r}, sys.argv[1]], timeout=600).returncode)
"""


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT / "kernels")}


def number_in(file: Path) -> int:
    """The number of the sleeper, once it is written."""
    for _ in range(600):
        if file.exists() and file.read_text():
            return int(file.read_text())
        time.sleep(0.1)
    raise AssertionError("no sleeper was started")


def ends(number: int) -> bool:
    """Whether a process is gone, or dead and only waits for somebody to ask, within ten seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    os.kill(number, signal.SIGKILL)
    return False


@pytest.mark.parametrize("sleeper", [OBEDIENT, DEAF], ids=["obedient", "deaf"])
def test_what_a_program_started_ends_with_it(tmp_path, monkeypatch, sleeper):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    told = tmp_path / "number"
    program = [sys.executable, "-c", PARENT.format(sleeper=sleeper), str(told)]

    def run_until_told(process, timeout):
        """A wait that ends as soon as there is something to be ended, whatever this machine has to do."""
        number_in(told)
        time.sleep(0.5)  # the deaf one needs to have said so
        raise subprocess.TimeoutExpired(program, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", run_until_told)
    with pytest.raises(subprocess.TimeoutExpired):
        run_group(program, timeout=0.1)
    assert ends(number_in(told))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has gone")
def test_a_program_ends_when_the_one_that_waits_for_it_is_killed(tmp_path):
    told = tmp_path / "number"
    sleeper = f"import os, pathlib; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); {OBEDIENT}"
    program = "import sys; from chipmath.processes import run_group\n"
    program += f"run_group([sys.executable, '-c', {sleeper!r}], timeout=600)"
    command = subprocess.Popen([sys.executable, "-c", program], env=environment(), start_new_session=True)
    number = number_in(told)
    command.kill()
    command.wait()
    assert ends(number)


def test_a_group_within_a_group_ends_too(tmp_path):
    told = tmp_path / "number"
    program = NESTED.format(parent=PARENT.format(sleeper=OBEDIENT))
    command = subprocess.Popen([sys.executable, "-c", program, str(told)], env=environment(), start_new_session=True)
    sleeper = number_in(told)
    command.terminate()
    assert command.wait(30) != 0
    assert ends(sleeper)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_command_has_no_traceback(tmp_path, number):
    program = (
        "import pathlib, signal, sys, time; from chipmath.processes import leave\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off\n"
        "def main():\n    pathlib.Path(sys.argv[1]).write_text('1')\n    time.sleep(600)\nleave(main)\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "told")], env=environment(), stderr=subprocess.PIPE, text=True
    )
    number_in(tmp_path / "told")
    command.send_signal(number)
    assert command.communicate(timeout=60)[1] == "interrupted\n"
    assert command.returncode == 130


def test_time_runs_out():
    with pytest.raises(subprocess.TimeoutExpired, match="timed out"):
        run_group([sys.executable, "-c", OBEDIENT], timeout=0.05)


def test_status_and_output_are_given_back():
    program = "import sys; print('out'); print('error', file=sys.stderr); sys.exit(3)"
    done = run_group([sys.executable, "-c", program], timeout=60, stdout=-1, stderr=-1, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "error\n")


MUCH = "from chipmath.processes import leave; leave(lambda: print('x' * 10**6) or 0)"


@pytest.mark.parametrize("arguments", [["-m", "chipmath.bench", "--list"], ["-c", MUCH]], ids=["list", "much"])
def test_a_reader_that_goes_away_is_no_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, *arguments], env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    "command", ["chipmath.training", "chipmath.bench training_cpu", "chipmath.bench --dry-run residency"]
)
def test_without_torch_a_command_says_so(tmp_path, command):
    """A finder that knows no torch stands for a Python without it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'torch' else find(name, package)\n"
        "sys.modules['torch'] = None\n"
    )
    where = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'kernels'}"}
    words = [*command.split(), *(["--quick", "--out", str(tmp_path / "out")] if "bench" in command else [])]
    done = subprocess.run([sys.executable, "-m", *words], env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs torch, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr
