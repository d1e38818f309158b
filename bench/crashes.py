"""Killed with -9 a hundred times at random moments, the same events every time: the crash tests, with more kills."""

from __future__ import annotations

import os
import subprocess
import sys

from bench.work import Work

KILLS = 100


def crashes(_work: Work) -> dict[str, float]:
    """How many kills were survived: all of them, or the stage fails."""
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "1800", "tests/test_crashes.py", "-k", "killed"]
    subprocess.run(command, env=os.environ | {"HISOB_TEST_KILLS": str(KILLS)}, check=True)
    return {"kills_survived": KILLS}
