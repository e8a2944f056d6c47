"""Two gloo processes: the weights of a single one, every image counted once, one run to resume.

Batch norm sees each process's own images, which no single process can reproduce (PyTorch's synchronised batch norm
needs CUDA), so equality is shown on a network with group norm; with batch norm the processes must agree.
"""

import contextlib
import dataclasses
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import nn

from univ.attacks import Attack
from univ.data.images import TensorImages
from univ.errors import InputError
from univ.models import Arch, Classifier, checkpoints
from univ.runs import Distributed
from univ.training import Data, Recipe, Saving, Trainer, evaluate
from univ.training.folder import check_start

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
ATTACK = Attack("l2", eps=0.5, step_size=0.3, steps=2)
# 75 images: batches of 32, 32 and 11, which two processes share as 16 + 16, 16 + 16 and 6 + 5
RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, weight_decay=5e-4, seed=3, attack=ATTACK)


def network(num_classes: int, norm: str) -> nn.Module:
    def layer(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(4, channels)

    trunk = [nn.Conv2d(3, 8, 3, stride=2, padding=1), layer(8), nn.ReLU()]
    trunk += [nn.Conv2d(8, 16, 3, stride=2, padding=1), layer(16), nn.ReLU()]
    return nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


def model(norm: str, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    build = functools.partial(network, norm=norm)
    return Classifier(build(10), Arch(build, head="8"), norm, "digits", 10)


def data() -> Data:
    """Noise: equality does not need anything to be learnt, and it is there without importing a data set's library."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for name, count in (("train", 75), ("val", 33)):
        pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        parts.append(TensorImages(pixels, torch.randint(10, (count,), generator=generator), name=name))
    return Data(*parts)


def train(process: Distributed, folder: Path, norm: str, recipe: Recipe = RECIPE, start_from=None):
    saving = Saving(folder / norm, checkpoint_every=0, validate_every=1, tensorboard=False)
    classifier = model(norm)
    records = Trainer(classifier, data(), recipe, saving, process, quiet=True).fit(start_from)
    return classifier, records


def together(rank: int, port: int, folder: Path) -> None:
    """What each of two processes does; what it found goes into <folder>/<rank>.pt."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    process = Distributed.from_environment(CPU)
    try:
        found = {}
        for norm in ("group", "batch"):
            classifier, records = train(process, folder, norm)
            found[norm] = {"weights": classifier.state_dict(), "records": records}
        one_epoch = dataclasses.replace(RECIPE, epochs=1)
        train(process, folder / "broken", "batch", one_epoch)
        process.barrier()
        start = checkpoints.newest_readable(folder / "broken" / "batch")
        resumed, _ = train(process, folder / "broken", "batch", RECIPE, start_from=start)
        found["resumed"] = resumed.state_dict()
        own = folder / "broken" / "batch" if rank == 0 else folder / "of another node"  # --save is not shared
        with contextlib.suppress(FileNotFoundError):
            start = None
            start = checkpoints.newest_readable(own)
        try:
            check_start(start, process)
        except InputError as error:
            found["refused"] = str(error)
        scores = evaluate(model("batch"), data().val, attack=ATTACK, batch_size=10, process=process, quiet=True)
        found["scores"] = [dataclasses.asdict(score) for score in scores]
        torch.save(found, folder / f"{rank}.pt")
    finally:
        process.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, dict, dict]:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(together, args=(port, folder), nprocs=2)
    return folder, *(torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Classifier, list]:
    return train(Distributed(CPU), tmp_path_factory.mktemp("one"), "group")


def test_two_processes_reach_the_weights_of_one(both, alone):
    first = both[1]
    single, records = alone
    for name, value in single.state_dict().items():
        assert torch.allclose(first["group"]["weights"][name], value, atol=1e-5), name
    keys = ("train_loss", "train_accuracy", "clean_loss", "clean_accuracy", "robust_loss", "robust_accuracy", "lr")
    for mine, theirs in zip(first["group"]["records"], records):
        assert [mine[key] for key in keys] == pytest.approx([theirs[key] for key in keys], abs=1e-4)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_processes_hold_equal_weights_and_statistics(norm, both):
    _, first, second = both
    for name, value in first[norm]["weights"].items():
        assert torch.equal(value, second[norm]["weights"][name]), name
    scores = [{key: value for key, value in record.items() if "_" in key} for record in first[norm]["records"]]
    assert all(record.keys() >= {"robust_accuracy"} for record in scores)


def test_a_resumed_run_of_two_processes_is_exact(both):
    _, first, second = both
    for found in (first, second):
        assert all(torch.equal(value, first["batch"]["weights"][name]) for name, value in found["resumed"].items())


def test_processes_that_do_not_find_the_same_checkpoint_all_stop(both):
    _, first, second = both
    assert first["refused"] == second["refused"]
    assert first["refused"].endswith("by rank: epoch 2, none; they must share -s/--save")
    assert not (both[0] / "of another node").exists()


def test_an_evaluation_by_two_processes_counts_every_image_once(both):
    _, first, second = both
    expected = evaluate(model("batch"), data().val, attack=ATTACK, process=Distributed(CPU), quiet=True)
    for found in (first, second):
        for score, single in zip(found["scores"], expected):
            assert score["images"] == single.images == 33
            assert score["accuracy"] == pytest.approx(single.accuracy)
            assert score["loss"] == pytest.approx(single.loss, rel=1e-5)


def test_only_the_first_process_writes(both):
    folder = both[0]
    assert {path.name for path in (folder / "group").iterdir()} == {checkpoints.LATEST, checkpoints.BEST, "log.jsonl"}
    assert len((folder / "group" / "log.jsonl").read_text().splitlines()) == 2


def test_a_batch_too_small_for_the_processes_is_refused(tmp_path):
    process = Distributed(CPU, rank=0, world_size=4)
    with pytest.raises(InputError, match="4 processes"):
        train(process, tmp_path, "group", dataclasses.replace(RECIPE, batch_size=6))


@pytest.mark.slow
def test_torchrun_trains_and_continues_after_a_process_dies(tmp_path):
    """The second process kills itself in epoch 2; torchrun starts both again and they go on from the checkpoint."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys\n"
        "import cifar10_training\n"
        "from univ import training\n"
        "train_epoch_of = training.Trainer.train_epoch\n"
        "def train_epoch(run, epoch):\n"
        "    if epoch == 2 and os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return train_epoch_of(run, epoch)\n"
        "training.Trainer.train_epoch = train_epoch\n"
        "cifar10_training.main(sys.argv[1:])\n"
    )
    save = tmp_path / "eps1"
    words = f"--dataset digits -m vgg11 -b 256 -k 0 -e 3 -a 1 -p 1 -s {save}".split()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    place = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *torchrun, str(script), *words], env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((save / "log.jsonl").read_text().splitlines()) == 3
    assert (save / "vgg11.pt").exists()
    assert done.stderr.count("epoch 3/3: train loss") == 1
