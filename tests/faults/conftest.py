"""What kills and pairs share: the inputs, one undisturbed run of each command, a server to download from."""

import time

import pytest
from fault_commands import COMMANDS, Run, begin, make_study, state
from published import serve, zip_of


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def single(study, surroundings, tmp_path_factory):
    """What one undisturbed run of a command leaves, by the command's name; `.changes` and `.seconds`: of that run."""
    states = {}

    def single(name):
        if name not in states:
            folder = begin(COMMANDS[name], study, tmp_path_factory.mktemp("single") / "run")
            run, began = Run(COMMANDS[name], folder, environment=surroundings), time.monotonic()
            assert run.end() == 0, run.output
            single.seconds[name] = time.monotonic() - began
            states[name] = state(folder)
            single.changes[name] = run.changes
        return states[name]

    single.changes, single.seconds = {}, {}
    return single


MEMBERS = {
    "eps1/resnet18.pt": bytes(range(256)) * 400,
    "eps1/vgg16_bn.pth": bytes(range(255, -1, -1)) * 400,
}
PUBLISHED = {"cifar10_eps1.zip": zip_of(MEMBERS), "imagenet100_eps3_vgg16_bn.ckpt": b"weights" * 30_000}


@pytest.fixture(scope="session")
def surroundings():
    """Environment of every command: where the published files are."""
    with serve({"1": ("Checkpoints of models", PUBLISHED)}) as service:
        yield service.environment
