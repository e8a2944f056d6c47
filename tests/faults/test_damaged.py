"""Whatever a file holds: its value, or one line that names it; no other exception, no hang, no memory to speak of."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import bombs
import damage
import pytest


def test_small_files_take_no_time_and_no_memory(tmp_path):
    """In a process of its own: hashing a tuple cannot be interrupted, not even by SIGTERM."""
    run = [sys.executable, bombs.__file__, str(tmp_path)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, env={"PYTHONPATH": root}, check=True)
    answers = done.stdout.splitlines()
    assert len(answers) == len(bombs.records()) + len(bombs.files()), "an answer is more than a line"
    for answer in answers:
        assert float(answer.split()[0]) < 10, answer
        assert "not a readable" in answer or answer.endswith(("read as Placeholder", "read as NoneType")), answer


def check(name: str, folder: Path, count: int, seed: int) -> Counter:
    """Damage files of a kind; what came of it, by word."""
    found: Counter = Counter()
    for how, word, what in damage.attempts(name, folder, count, seed):
        assert word not in ("traceback", "crash", "hang"), (name, how, word, what)
        # "fields" makes another valid file, with checksums that fit
        assert word != "silent" or how == "fields" or not damage.KINDS_OF_FILE[name].checked, (name, how)
        found[word] += 1
    return found


@pytest.mark.parametrize("name", damage.KINDS_OF_FILE)
def test_a_damaged_file_is_its_value_or_one_line(name, tmp_path):
    check(name, tmp_path, 8, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", damage.KINDS_OF_FILE)
def test_a_damaged_file_is_its_value_or_one_line_at_length(name, tmp_path):
    print(name, dict(check(name, tmp_path, 300, seed=1)))  # shown with -s
