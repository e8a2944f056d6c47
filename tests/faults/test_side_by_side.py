"""Pairs of the same command started at once: one whole result, equal to that of one run; nobody ends in a traceback."""

import csv
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from fault_commands import COMMANDS, Command, Run, begin, state

from univ.data import indices
from univ.results import made


def pair(name, study, folder, environment):
    """Two runs at once; checks how they end and what they leave."""
    command = COMMANDS[name]
    begin(command, study, folder)
    both = [Run(command, folder, environment=environment) for _ in range(2)]
    codes = sorted(run.end() for run in both)
    shown = "\n---\n".join(run.output for run in both)
    assert codes == ([0, 0] if command.second == "waits" else [0, 2]) or (name == "imagenet50" and codes == [0, 2]), (
        shown
    )
    for run in both:
        if run.process.exitcode == 2:
            lines = run.output.splitlines()
            assert len(lines) == 1 and ("is being written by process" in lines[0] or "exists" in lines[0]), run.output
    return state(folder)


PAIRS = [pytest.param(1, id="once"), pytest.param(10, marks=pytest.mark.slow, id="often")]


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_once_leave_what_one_leaves(name, study, single, surroundings, tmp_path, pairs):
    for number in range(pairs):
        assert pair(name, study, tmp_path / str(number), surroundings) == single(name)


@pytest.mark.parametrize("pairs", PAIRS)
def test_two_evaluations_append_their_rows_whole(study, tmp_path, pairs):
    words = "--dataset digits -t 0 -m vgg11 -v cnns/eps1/vgg11.pt -o 1 -p 1 -b 48 --results-file accuracy.csv --quiet"
    command = Command("cifar10_training", tuple(words.split()), ("cnns",))
    for number in range(pairs):
        folder = begin(command, study, tmp_path / str(number))
        assert [run.end() for run in [Run(command, folder) for _ in range(2)]] == [0, 0]
        header, *rows = csv.reader((folder / "accuracy.csv").read_text().splitlines())
        assert len(rows) == 4 and rows[0][:-1] == rows[2][:-1] and rows[1][:-1] == rows[3][:-1]
        assert {len(row) for row in rows} == {len(header)}


def at_once(*tasks):
    """Run functions in threads that begin together."""
    start = threading.Barrier(len(tasks))
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [run.result() for run in [pool.submit(lambda task=task: (start.wait(), task())[1]) for task in tasks]]


def test_two_that_draw_other_indices_use_the_same(tmp_path):
    for seed in range(20):
        path = tmp_path / f"{seed}.csv"
        a, b = at_once(*(partial(indices.read_or_draw, path, n, 1000, seed) for n in (300, 200)))
        assert a.equal(b) and a.equal(indices.read_indices(path))


def test_two_settings_written_to_one_table_leave_a_pair_that_fits(tmp_path):
    path = tmp_path / "scores.csv"
    for _ in range(50):
        at_once(*(partial(made.write_csv, path, f"k\n{k}\n", {"k": k}) for k in (1, 2)))
        assert sum(bool(made.check(path, {"k": k})) for k in (1, 2)) == 1
