"""Whatever a file holds: its value, or one line that names it; no other exception, no hang, no memory to speak of."""

import subprocess
import sys
from pathlib import Path

import bombs


def test_small_files_take_no_time_and_no_memory(tmp_path):
    """In a process of its own: hashing a tuple cannot be interrupted, not even by SIGTERM."""
    run = [sys.executable, bombs.__file__, str(tmp_path)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, env={"PYTHONPATH": root}, check=True)
    answers = done.stdout.splitlines()
    assert len(answers) == len(bombs.records()) + len(bombs.files()), "an answer is more than a line"
    for answer in answers:
        assert float(answer.split()[0]) < 10, answer
        assert "not a readable" in answer or answer.endswith("read as Placeholder"), answer
