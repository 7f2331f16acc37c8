"""No backend touches memory outside its arrays: the calls of the table beside inaccessible pages."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSEGV") or sys.platform == "win32", reason="needs mprotect")


def beside_guard_pages(what):
    command = [sys.executable, "-m", f"{__package__}.guard_pages", what]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_reading_past_an_array_is_fatal():
    assert beside_guard_pages("trip").returncode == -signal.SIGSEGV


def test_writing_to_what_is_only_read_is_fatal():
    assert beside_guard_pages("write").returncode == -signal.SIGSEGV


def test_calls_stay_inside_their_arrays(device):
    process = beside_guard_pages(device)
    last = process.stdout.splitlines()[-1:]
    assert process.returncode == 0, f"{last} ended with {process.returncode}\n{process.stderr[-3000:]}"
    assert last, "no case ran"
