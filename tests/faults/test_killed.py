"""Commands killed at seeded moments and given again until they end: what they leave is what an undisturbed run leaves.

A kill comes before a change to a file (a file opened to be written, a rename, a removal, a lock), chosen among all that
an undisturbed run makes, or at a moment of its time.
"""

import os
import random
import signal
import time

import pytest
from fault_commands import COMMANDS, HERE, Command, Run, begin, state

KILLED = [name for name in COMMANDS if name != "train"]  # which asks for --resume


def kill_until_it_ends(name, study, folder, environment, rng, *, kills, changes, seconds):
    """Give a command again after each of at most `kills` kills; how many met it alive."""
    command = COMMANDS[name]
    begin(command, study, folder)
    for met in range(kills + 1):
        by_time = met % 2 and met < kills
        die_at = rng.randint(1, changes) if met < kills and not by_time else None
        run = Run(command, folder, die_at=die_at, environment=environment)
        if by_time:
            run.process.join(rng.random() * seconds)
            run.kill()
        code = run.end()
        assert not run.left(), f"{name}: processes live on\n{run.output}"
        if code != -signal.SIGKILL:
            # what is there is not replaced unasked: a run that was killed after its last change has ended well
            assert code == 0 or (code == 2 and "exists" in run.output and met), run.output
            return met
    raise AssertionError("killed without being asked to")


def check(name, study, single, surroundings, folder, *, rounds, kills):
    expected = single(name)
    total = 0
    for number in range(rounds):
        rng = random.Random(f"{name} {number}")
        where = folder / str(number)
        words = {"kills": kills, "changes": single.changes[name], "seconds": single.seconds[name]}
        total += kill_until_it_ends(name, study, where, surroundings, rng, **words)
        assert state(where) == expected, f"{name}, round {number}"
    return total


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_given_again_ends_as_if_it_had_not_been(name, study, single, surroundings, tmp_path):
    assert check(name, study, single, surroundings, tmp_path, rounds=1, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_many_kills(name, study, single, surroundings, tmp_path, record_property):
    total = check(name, study, single, surroundings, tmp_path, rounds=8, kills=6)
    record_property("kills", total)
    print(f"{name}: {total} kills in 8 rounds, nothing lost")


IMAGENET = "-d lmdb -n 100 -m torchvision:shufflenet_v2_x0_5 -b 4 -e 5 -w 2 -s out"
INVERSION = "-d imagenet100 -p digits -m vgg11 -e eps1 --model-dir cnns/eps1 --data-path hundred/val.lmdb -i inv -n 40"


@pytest.mark.parametrize(
    ("module", "words", "inputs"),
    [
        ("imagenet_training", IMAGENET, ("lmdb",)),
        ("inversion", f"{INVERSION} --iterations 50 --workers 2 -b 1", ("cnns", "hundred")),
        ("univ.utils.folder2lmdb", "-f images -s train -p 2", ("images",)),
    ],
)
def test_workers_end_with_the_process_that_is_killed(module, words, inputs, study, tmp_path):
    command = Command(module, (*words.split(), *(HERE if module != "univ.utils.folder2lmdb" else ())), inputs)
    folder = begin(command, study, tmp_path / "run")
    if module == "univ.utils.folder2lmdb":  # reading a pipe that nobody writes to waits for ever
        os.mkfifo(folder / "images/train/class1/zz.png")
    run = Run(command, folder)
    deadline = time.monotonic() + 60
    while len(run.family()) < 3:
        assert run.process.is_alive() and time.monotonic() < deadline, run.output
        time.sleep(0.01)
    run.kill()
    assert not run.left()
