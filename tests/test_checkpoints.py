"""Checkpoints: published layouts give the right weights, the original tools read ours, damage is survived."""

import random
from types import SimpleNamespace

import dill
import numpy as np
import pytest
import torch
from networks import shake
from robustness.attacker import AttackerModel

from univ.errors import InputError
from univ.files import disk as files
from univ.models import build_model, checkpoints, load_model
from univ.models.checkpoints import BEST, LATEST

MEAN, STD = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)


class Schedule:
    """Stands for an object of the training code that a checkpoint was pickled with."""


@pytest.fixture(scope="module")
def model():
    model = build_model("resnet10", "digits", seed=0).eval()
    shake(model)
    return model


def published(model, *, module="module.", network="model.", attacker=True, statistics=True):
    """A state dict as published files hold it, with statistics that are not the data set's."""
    state = {}
    for owner, normalizer in (("", "normalizer"), ("attacker.", "normalize")):
        if owner and not attacker:
            continue
        if statistics:
            state |= {f"{module}{owner}{normalizer}.new_mean": MEAN, f"{module}{owner}{normalizer}.new_std": STD}
        state |= {f"{module}{owner}{network}{name}": value for name, value in model.model.state_dict().items()}
    return state


def rest():
    return {"optimizer": {"state": {}, "param_groups": []}, "schedule": None, "epoch": 90, "amp": None}


LAYOUTS = {
    "published": lambda m: {"model": published(m), **rest(), "nat_prec1": torch.tensor(97.5)},
    "without module.": lambda m: {"model": published(m, module=""), **rest()},
    "model.model.": lambda m: {"model": published(m, network="model.model."), **rest()},
    "model.model. without module.": lambda m: {"model": published(m, module="", network="model.model."), **rest()},
    "model.module.": lambda m: {"model": published(m, module="", network="model.module."), **rest()},
    "state_dict": lambda m: {"state_dict": published(m), **rest()},
    "without attacker": lambda m: {"model": published(m, attacker=False)},
    "only weights": lambda m: published(m),
    "with foreign objects": lambda m: {"model": published(m), **rest(), "args": Schedule(), "f": lambda x: x},
}


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_gives_the_right_weights(tmp_path, model, layout, zip_format):
    path = tmp_path / "resnet10.ckpt"
    torch.save(LAYOUTS[layout](model), path, pickle_module=dill, _use_new_zipfile_serialization=zip_format)
    loaded = load_model("resnet10", "digits", path)
    assert not loaded.training
    for name, value in model.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert torch.equal(loaded.normalizer.new_mean, MEAN) and torch.equal(loaded.normalizer.new_std, STD)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_weights_without_statistics_or_counts_of_batches_load(tmp_path, model, prefix):
    state = {prefix + name: value for name, value in model.model.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "w.pt")
    loaded = load_model("resnet10", "digits", tmp_path / "w.pt")
    assert torch.equal(loaded.normalizer.new_mean, model.normalizer.new_mean)  # the data set's
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_the_rest_of_a_checkpoint_comes_as_saved(tmp_path, model):
    torch.save({"state_dict": published(model), **rest(), "nat_prec1": torch.tensor(97.5)}, tmp_path / "w.pt")
    checkpoint = checkpoints.load_checkpoint(tmp_path / "w.pt")
    assert checkpoint["epoch"] == 90 and checkpoint["nat_prec1"] == 97.5 and "state_dict" not in checkpoint
    assert set(checkpoint["model"]) == set(model.state_dict())


def changed(model, **changes):
    """The published state dict with some of the network's weights replaced, in both copies; None removes."""
    state = published(model)
    for name, value in changes.items():
        for owner in ("", "attacker."):
            key = f"module.{owner}model.{name.replace('__', '.')}"
            state.pop(key, None)
            if value is not None:
                state[key] = value
    return state


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer1__0__conv2__weight": None}, r"no weights of resnet10 for digits: missing layer1\.0\.conv2\.weight"),
        ({"layer9__weight": torch.ones(2)}, r"unexpected layer9\.weight"),
        ({"bn1__weight": torch.ones(3)}, r"of another shape: bn1\.weight is \(3,\), not \(8,\)"),
        ({"linear__weight": torch.ones(50, 64), "linear__bias": torch.ones(50)}, "has 50 classes, expected the 10 of"),
    ],
    ids=["missing", "unexpected", "shape", "classes"],
)
def test_what_does_not_match_is_named(tmp_path, model, changes, message):
    path = tmp_path / "w.pt"
    torch.save({"model": changed(model, **changes)}, path)
    with pytest.raises(InputError, match=message) as error:
        load_model("resnet10", "digits", path)
    assert str(path) in str(error.value)


def test_another_architecture_is_named(tmp_path, model):
    torch.save({"model": published(model)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"no weights of vgg11 for digits: missing .* and \d+ more; unexpected .*-m"):
        load_model("vgg11", "digits", tmp_path / "w.pt")


def test_copies_that_contradict_each_other_are_refused(tmp_path, model):
    state = published(model) | {"module.attacker.model.bn1.weight": torch.zeros(8)}
    torch.save({"model": state}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"two different values of the weight 'model\.bn1\.weight'"):
        load_model("resnet10", "digits", tmp_path / "w.pt")


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"epoch": 3}, torch.ones(3), {"model": {"a": "text"}}])
def test_files_without_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt holds"):
        load_model("resnet10", "digits", tmp_path / "w.pt")


# --- writing --------------------------------------------------------------------------------------------------------


def test_the_original_tools_read_ours(tmp_path, model):
    """What robustness.model_utils.make_and_restore_model does, on its own model class and with strict names."""
    path = tmp_path / "resnet10.pt"
    checkpoints.save_checkpoint(path, model, epoch=6, adv_prec1=61.5, optimizer={}, schedule={})
    content = torch.load(path, pickle_module=dill, weights_only=False)
    state = {name[len("module.") :]: value for name, value in content["model"].items()}
    digits = SimpleNamespace(mean=torch.zeros(3), std=torch.ones(3))
    theirs = AttackerModel(build_model("resnet10", "digits", seed=1).model, digits)
    theirs.load_state_dict(state)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(images)[0], model(images))
    assert set(content) == {"model", "optimizer", "schedule", "epoch", "amp", "adv_prec1"}
    assert content["epoch"] == 6 and content["amp"] is None


def test_copies_take_no_space(tmp_path, model):
    checkpoints.save_checkpoint(tmp_path / "w.pt", model, epoch=1)
    weights = sum(value.nbytes for value in model.state_dict().values())
    assert (tmp_path / "w.pt").stat().st_size < 1.5 * weights + 50_000


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, model, monkeypatch):
    path = tmp_path / LATEST
    checkpoints.save_checkpoint(path, model, epoch=1)
    before = files.file_hash(path)

    def die(value, target):
        target.write(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(InputError, match="disk full"):
        checkpoints.save_checkpoint(path, model, epoch=2)
    assert files.file_hash(path) == before and [entry.name for entry in tmp_path.iterdir()] == [LATEST]


def test_optimiser_schedule_and_random_state_come_back(tmp_path, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    mine = {"best": 61.5, "random": checkpoints.random_state()}
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    checkpoints.save_checkpoint(tmp_path / LATEST, model, epoch=5, **states, mine=mine)
    checkpoint = checkpoints.load_checkpoint(tmp_path / LATEST)
    other = torch.optim.SGD(build_model("resnet10", "digits", seed=3).parameters(), lr=0.5, momentum=0.9)
    other.load_state_dict(checkpoint["optimizer"])
    assert other.param_groups[0]["lr"] == 0.1
    momenta = [each.state_dict()["state"][0]["momentum_buffer"] for each in (other, optimizer)]
    assert torch.equal(*momenta)
    torch.optim.lr_scheduler.StepLR(other, 30).load_state_dict(checkpoint["schedule"])
    assert checkpoint["mine"]["best"] == 61.5
    checkpoints.restore_random_state(checkpoint["mine"]["random"])
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


# --- resuming from damage -------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_for_the_newest_readable_one(tmp_path, model):
    for name, epoch in ((LATEST, 9), (BEST, 7), ("5_checkpoint.pt", 5), ("8_checkpoint.pt", 8)):
        checkpoints.save_checkpoint(tmp_path / name, model, epoch=epoch)
    for name, epoch in ((LATEST, 9), ("8_checkpoint.pt", 8), (BEST, 7), ("5_checkpoint.pt", 5)):
        path, checkpoint = checkpoints.newest_readable(tmp_path)
        assert (path.name, checkpoint["epoch"]) == (name, epoch)
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="none of the checkpoints"):
        checkpoints.newest_readable(tmp_path)


def test_the_latest_checkpoint_counts_though_another_has_more_epochs(tmp_path, model):
    for name, epoch in ((LATEST, 9), ("10_checkpoint.pt", 10)):
        checkpoints.save_checkpoint(tmp_path / name, model, epoch=epoch)
    assert checkpoints.newest_readable(tmp_path)[0].name == LATEST


def test_nothing_to_resume_from_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint\.pt\.latest in"):
        checkpoints.newest_readable(tmp_path)
