"""Probes: as good as logistic regression, the same alone and together, stored safely; their two scripts on digits."""

import dataclasses
import json
import math
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from image_files import encoded_image
from sklearn.linear_model import LogisticRegression
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import compare_probes
import train_probe
from univ import results
from univ.data import cifar, open_images
from univ.data.lmdb import write_lmdb
from univ.errors import InputError
from univ.files import disk as files
from univ.models import build_model, checkpoints
from univ.reps import files as repfiles
from univ.reps import probes, probing
from univ.reps.extract import extract

CPU = torch.device("cpu")
QUIET = "--device cpu --quiet"


def pixels(split: str, rows: int | None = None) -> probes.Labelled:
    """Every fourth pixel of the digits, about the 64 values they were enlarged from."""
    images = open_images("digits", split)
    reps = images.pixels[:rows, 0, 2::4, 2::4].flatten(1).float() / 255
    return probes.Labelled(reps, images.labels[:rows])


def run(seeds, train_part, val_part, settings, **words) -> list[probes.Epoch]:
    return list(probes.train(train_part, val_part, 10, seeds, settings, device=CPU, **words))


def test_as_accurate_as_logistic_regression():
    train_part, val_part = pixels("train"), pixels("val")
    settings = probes.Training(epochs=30, batch_size=64, lr=2e-2)
    best = probes.Best()
    for epoch in run([0, 1], train_part, val_part, settings):
        best.update(epoch.probes)
    reference = LogisticRegression(max_iter=1000).fit(train_part.reps.numpy(), train_part.labels.numpy())
    expected = reference.score(val_part.reps.numpy(), val_part.labels.numpy())
    for probe in best.by_accuracy:
        assert abs(probe.accuracy - expected) <= 0.015


def test_together_equals_one_by_one():
    train_part, val_part = pixels("train"), pixels("val")
    settings = probes.Training(epochs=3, batch_size=64)
    together = run([3, 4, 5], train_part, val_part, settings)
    for i, seed in enumerate((3, 4, 5)):
        alone = run([seed], train_part, val_part, settings)
        for a, b in zip(alone, together):
            assert torch.allclose(a.probes[0].weight, b.probes[i].weight, atol=1e-5)
            assert torch.allclose(a.probes[0].bias, b.probes[i].bias, atol=1e-5)
            assert a.train_losses[0] == pytest.approx(b.train_losses[i], abs=1e-5)
            assert a.probes[0].accuracy == b.probes[i].accuracy
    assert not torch.allclose(together[-1].probes[0].weight, together[-1].probes[1].weight, atol=1e-3)


def test_one_step_is_adams_step_on_a_linear_layer():
    """Against nn.Linear and torch.optim.Adam: one batch that holds all rows, so that their order does not matter."""
    part = pixels("train", 100)
    settings = probes.Training(epochs=2, batch_size=100, lr=1e-2)
    epochs = run([7], part, part, settings)
    layer = torch.nn.Linear(64, 10)
    weights, biases = probes.initial_weights(64, 10, [7])
    layer.load_state_dict({"weight": weights[0].T, "bias": biases[0, 0]})
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2, eta_min=1e-6)
    for epoch in epochs:
        assert epoch.lr == pytest.approx(schedule.get_last_lr()[0])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(part.reps), part.labels).backward()
        optimizer.step()
        schedule.step()
        assert torch.allclose(epoch.probes[0].weight, layer.weight, atol=1e-6)
    assert epochs[-1].probes[0].loss == pytest.approx(
        torch.nn.functional.cross_entropy(layer(part.reps), part.labels).item(), abs=1e-6
    )


def test_initial_weights_are_those_of_a_linear_layer():
    weights, biases = probes.initial_weights(100, 50, [0, 1])
    assert weights.shape == (2, 100, 50) and biases.shape == (2, 1, 50)
    assert weights.abs().max() <= 0.1 and weights.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert torch.equal(probes.initial_weights(100, 50, [1])[0][0], weights[1])


def test_slices_change_nothing_but_memory(tmp_path, monkeypatch):
    """Many slices instead of one: every row is seen once an epoch, and a file of float16 gives the same as memory."""
    monkeypatch.setattr(probes, "SLICE_BATCHES", 2)
    train_part, val_part = pixels("train", 300), pixels("val")
    torch.save(train_part.reps.half(), tmp_path / "reps.pt")
    mapped = repfiles.open_reps(tmp_path / "reps.pt")
    settings = probes.Training(epochs=2, batch_size=32)
    weights = [
        run([0], probes.Labelled(reps, train_part.labels), val_part, settings, resident=resident)[-1].probes[0].weight
        for reps, resident in ((mapped, False), (mapped, True), (mapped.float(), False))
    ]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    order = torch.randperm(300).split(64)
    rows = torch.cat(list(probes._slices(torch.arange(300.0)[:, None], order, CPU)))
    assert torch.equal(rows[:, 0], torch.cat(order).float())


def test_best_by_accuracy_and_by_loss():
    best = probes.Best()
    for number, (accuracy, loss) in enumerate([(0.5, 0.9), (0.7, 0.8), (0.7, 0.9), (0.6, 0.7)], start=1):
        best.update([probes.Probe(torch.zeros(2, 1), torch.zeros(2), 0, number, accuracy, loss)])
    assert best.by_accuracy[0].epoch == 2 and best.by_loss[0].epoch == 4


def test_wrong_input_is_named():
    part, narrow = pixels("train", 20), pixels("val", 20)
    with pytest.raises(InputError, match="labels run from 0 to"):
        next(probes.train(part, narrow, 3, [0], probes.Training(), device=CPU))
    narrow = probes.Labelled(narrow.reps[:, :5], narrow.labels)
    with pytest.raises(InputError, match="64 columns, validation ones 5"):
        run([0], part, narrow, probes.Training())


@pytest.mark.parametrize("what", ["training", "validation"])
def test_nan_and_divergence_are_errors(what):
    parts = {"training": pixels("train", 200), "validation": pixels("val", 200)}
    settings = probes.Training(epochs=1, batch_size=64)
    with pytest.raises(InputError, match=r"diverged in epoch 1: lower --lr \(now 3e\+37\)"):
        run([0], *parts.values(), probes.Training(epochs=1, batch_size=64, lr=3e37))
    parts[what].reps[[17, 30], 3] = math.nan
    with pytest.raises(InputError, match=f"the {what} representations hold NaN or infinity, first in row 17"):
        run([0], *parts.values(), settings)


def test_checkpoint_round_trip(tmp_path):
    probe = probes.Probe(torch.randn(10, 4), torch.randn(10), 3, 7, 0.5, 1.25)
    probes.save(tmp_path / "best.pt", probe, {"arch": "vgg11", "eps": None, "reps": {"val": "a/b"}})
    raw = torch.load(tmp_path / "best.pt", weights_only=True)
    assert raw["arch"] == "vgg11" and raw["epoch"] == 7 and raw["accuracy"] == 0.5
    read, about = probes.load(tmp_path / "best.pt")
    assert torch.equal(read.weight, probe.weight) and torch.equal(read.bias, probe.bias)
    assert (read.seed, read.epoch, read.accuracy, read.loss) == (3, 7, 0.5, 1.25)
    assert about["reps"] == {"val": "a/b"}
    probes.save(tmp_path / "nan.pt", dataclasses.replace(probe, bias=torch.full((10,), math.nan)), {})
    with pytest.raises(InputError, match="weights are NaN"):
        probes.load(tmp_path / "nan.pt")
    with pytest.raises(InputError, match="columns"):
        probes.predictions([probe], torch.zeros(5, 3), device=CPU)


@pytest.mark.parametrize("name", ["reps.pt", "reps.npy"])
def test_files_of_representations(tmp_path, name):
    path, reps = tmp_path / name, torch.randn(6, 2, 2, 2)
    torch.save(reps, path) if name.endswith("pt") else np.save(path, reps.numpy())
    assert torch.equal(repfiles.open_reps(path), reps.flatten(1))
    assert repfiles.read_identity(path) == {}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=name):
        repfiles.open_reps(path)
    with pytest.raises(FileNotFoundError):
        repfiles.open_reps(tmp_path / "missing.pt")
    torch.save({"a": 1}, tmp_path / "dict.pt")
    with pytest.raises(InputError, match="expected a floating point tensor"):
        repfiles.open_reps(tmp_path / "dict.pt")


# ------------------------------------------------------------------------------------------------- extraction


@pytest.fixture(scope="module")
def model():
    return build_model("vgg11", "digits", seed=0).eval()


class Reader:
    """Extracts the digits asked for, and notes how many were; the so-many-th time it is killed."""

    def __init__(self, model, killed=0):
        self.model, self.killed, self.asked, self.images = model, killed, [], open_images("digits", "val")

    def __call__(self, positions, name):
        self.asked.append(len(positions))
        if len(self.asked) == self.killed:
            raise KeyboardInterrupt
        return extract(self.model, self.images, positions, batch_size=64, device=CPU, quiet=True)

    def extract(self, path, **identity):
        identity = {"arch": "vgg11", "dtype": "float32", "n": len(self.images), **identity}
        return repfiles.extract(path, identity, self.images.labels, self, chunk=100)


def test_extraction_continues_where_it_was_killed(tmp_path, model):
    whole = Reader(model).extract(tmp_path / "whole.pt")
    assert whole.shape == (360, 64) and whole.dtype == torch.float32
    reader, path = Reader(model, killed=3), tmp_path / "reps.pt"
    with pytest.raises(KeyboardInterrupt):
        reader.extract(path)
    assert not path.exists()
    reps = reader.extract(path)
    assert reader.asked == [100, 100, 100, 100, 60]  # the third part again, and the fourth: the first two are kept
    assert torch.equal(reps, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reps.json", "reps.pt", "whole.json", "whole.pt"]
    reader.extract(path)
    assert len(reader.asked) == 5  # it is there


def test_damaged_blocks_of_an_unfinished_extraction_are_extracted_again(tmp_path, model):
    whole = Reader(model).extract(tmp_path / "whole.pt")
    reader, path = Reader(model, killed=4), tmp_path / "reps.pt"
    with pytest.raises(KeyboardInterrupt):
        reader.extract(path)
    with (tmp_path / "reps.pt.partial").open("r+b") as file:
        file.seek(150 * 64 * 4)  # in the second block
        file.write(b"damage")
    reps = reader.extract(path)
    assert reader.asked[4:] == [100, 60] and torch.equal(reps, whole)
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    assert torch.equal(reader.extract(path), whole)  # no longer what was made


def test_extraction_of_another_identity_starts_over(tmp_path, model):
    Reader(model).extract(tmp_path / "reps.pt", checkpoint="a")
    other = Reader(build_model("vgg11", "digits", seed=1).eval())
    reps = other.extract(tmp_path / "reps.pt", checkpoint="b", dtype="float16")
    assert reps.dtype == torch.float16 and other.asked == [100, 100, 100, 60]
    described = repfiles.read_identity(tmp_path / "reps.pt")
    assert described["checkpoint"] == "b" and described["dtype"] == "float16"
    assert 0 <= described["classifier_accuracy"] <= 1


# ------------------------------------------------------------------------------------------------- scripts


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two models of random weights, their checkpoints, and probes trained on their representations."""
    root = tmp_path_factory.mktemp("study")
    for seed, arch in enumerate(("vgg11", "resnet10")):
        path = root / "cnns" / "eps1" / f"{arch}.pt"
        checkpoints.save_checkpoint(path, build_model(arch, "digits", seed=seed), epoch=1)
        more = f"-b 64 --epochs 2 --num-probes 2 --runs {root}/runs --run-name digits/{arch}_eps1"
        train_probe.main(f"-m {path} -d digits {more} {QUIET}".split())
    return root


def test_train_probe_writes_checkpoints_logs_and_representations(study):
    run_folder = study / "runs/digits/vgg11_eps1"
    start = run_folder / json.loads((run_folder / "finished.json").read_text())["start"]
    for i in ("0", "1"):
        names = sorted(path.name.split(".")[0] for path in (start / i).iterdir())
        assert names == ["best_acc_checkpoint", "best_loss_checkpoint", "events"]
        probe, about = probes.load(start / i / "best_acc_checkpoint.pt")
        assert about["arch"] == "vgg11" and about["train_set"] == "digits" and about["eps"] == "eps1"
        assert about["node"] and probe.weight.shape == (10, 64) and probe.seed == int(i)
        preds = probes.predictions([probe], repfiles.open_reps(run_folder / "val_reps.pt"), device=CPU)[0]
        assert (preds == open_images("digits").labels).double().mean().item() == pytest.approx(probe.accuracy)
        logged = EventAccumulator(str(start / i)).Reload()
        assert [event.step for event in logged.Scalars("loss/train_batch")] == [30]  # of 2 epochs of 23 steps
        assert probe.accuracy == pytest.approx(max(event.value for event in logged.Scalars("accuracy/val")))


def test_training_on_files_equals_training_on_the_model(study, tmp_path):
    folder = study / "runs/digits/vgg11_eps1"
    labels = tmp_path / "labels.csv"
    pd.DataFrame(open_images("digits", "train").labels.numpy()).to_csv(labels)
    files_given = f"--reps-file {folder}/reps.pt --val-reps-file {folder}/val_reps.pt --labels-file {labels}"
    train_probe.main(f"-a vgg11 -d digits {files_given} -b 64 --epochs 2 --runs {tmp_path}/runs {QUIET}".split())
    first = json.loads((folder / "finished.json").read_text())
    second = json.loads((tmp_path / "runs/digits/vgg11_eps1/finished.json").read_text())
    assert second["probes"][0] == pytest.approx(first["probes"][0], abs=1e-4)
    assert second["eps"] == "eps1" and second["node"] == first["node"]


def test_extraction_only(study, tmp_path):
    words = f"-m {study}/cnns/eps1/vgg11.pt -d digits --epochs 0 --num-probes 0 --reps-dtype float16"
    train_probe.main(f"{words} --runs {tmp_path}/runs --cache-dir {tmp_path}/cache {QUIET}".split())
    reps = repfiles.open_reps(tmp_path / "cache/digits/vgg11_eps1/reps.pt")
    assert reps.dtype == torch.float16 and reps.shape == (1437, 64)
    expected = repfiles.open_reps(study / "runs/digits/vgg11_eps1/reps.pt")
    assert torch.allclose(reps.float(), expected, rtol=1e-3, atol=1e-3)
    assert not (tmp_path / "runs").exists()


def test_compare_probes(study, tmp_path):
    out = tmp_path / "probe_agreement.csv"
    words = f"--runs {study}/runs/digits --out {out} {QUIET}".split()
    compare_probes.main(words)
    table = pd.read_csv(out)
    assert list(table.columns) == ["probe_1", "probe_2", "agreement"] and len(table) == 6

    def preds(name):
        probe, about = probes.load(study / "runs/digits" / name / "best_acc_checkpoint.pt")
        reps = repfiles.open_reps(study / f"runs/digits/{about['arch']}_eps1/val_reps.pt")
        return (reps @ probe.weight.T + probe.bias).argmax(dim=1)

    for row in table.itertuples():
        assert row.agreement == (preds(row.probe_1) == preds(row.probe_2)).double().mean().item()

    read = results.load_probe_agreement(tmp_path)
    assert set(read["dataset"]) == {"digits"} and set(read["eps"]) == {1.0}
    assert set(read["arch_1"]) | set(read["arch_2"]) == {"vgg11", "resnet10"}
    before = out.stat().st_mtime_ns
    compare_probes.main(words)
    assert out.stat().st_mtime_ns == before  # done already
    compare_probes.main([*words, "--split", "train"])
    assert out.stat().st_mtime_ns != before


def test_probes_read_the_representations_of_their_model_only(study, tmp_path):
    shutil.copytree(study / "runs", tmp_path / "runs")
    words = f"--runs {tmp_path}/runs/digits --out {tmp_path}/out.csv {QUIET}".split()
    compare_probes.main(words)
    before = (tmp_path / "out.csv").stat().st_mtime_ns
    path = tmp_path / "runs/digits/vgg11_eps1/val_reps.pt"
    files.save_torch(path, repfiles.open_reps(path).roll(1, 0).clone())
    compare_probes.main(words)
    assert (tmp_path / "out.csv").stat().st_mtime_ns != before  # not "done already"
    other = tmp_path / "cnns/eps1/vgg11.pt"  # the same architecture, other weights
    checkpoints.save_checkpoint(other, build_model("vgg11", "digits", seed=5), epoch=1)
    again = f"-m {other} -d digits --epochs 0 --runs {tmp_path}/runs --run-name digits/vgg11_eps1 {QUIET}"
    train_probe.main(again.split())
    with pytest.raises(InputError, match=r"val_reps\.pt is of another model than the probe .* differ in checkpoint"):
        compare_probes.main(words)


def save_probe(folder, seed=0, **about):
    weight = torch.randn(10, 4, generator=torch.Generator().manual_seed(seed))
    probes.save(folder / probes.BEST_ACCURACY, probes.Probe(weight, torch.zeros(10), seed, 1, 0.1, 2.3), about)


def test_compare_probes_leaves_out_what_has_not_finished(study, tmp_path):
    start = tmp_path / "runs/vgg11/2026-01-01_00-00-00"
    save_probe(start / "0")
    (start / "args.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no finished probes"):
        compare_probes.main(f"--runs {tmp_path}/runs {QUIET}".split())
    (start / "finished.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="val representations"):
        compare_probes.main(f"--runs {tmp_path}/runs {QUIET}".split())


def test_a_probe_trained_twice_counts_once(tmp_path):
    for start in ("first", "again"):
        for seed in (0, 1):
            save_probe(tmp_path / f"runs/vgg11/{start}/{seed}", seed, run="vgg11")
    torch.save(torch.randn(20, 4), tmp_path / "runs" / "vgg11" / "val_reps.pt")
    compare_probes.main(f"--runs {tmp_path}/runs --out {tmp_path}/out.csv {QUIET}".split())
    assert len(pd.read_csv(tmp_path / "out.csv")) == 1


def test_probes_of_different_images_are_not_compared(tmp_path):
    for number, n in enumerate((20, 30)):
        save_probe(tmp_path / f"runs/{number}/t/0", number, train_set="digits")
        torch.save(torch.randn(n, 4), tmp_path / f"runs/{number}/val_reps.pt")
    with pytest.raises(InputError, match="not given the same images"):
        compare_probes.main(f"--runs {tmp_path}/runs --out {tmp_path}/out.csv {QUIET}".split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-d", "digits"], "-m CHECKPOINT"),
        (["-d", "mnist", "-m", __file__], "invalid choice"),
        (["-d", "digits", "-m", "missing.pt"], "there is no file missing.pt"),
        (["-d", "digits", "--reps-file", __file__, "--val-reps-file", __file__], "-a ARCH"),
    ],
)
def test_wrong_words_end_with_code_2(words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        train_probe.parse_args(words)
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_representations_of_different_models_are_refused(study):
    runs = study / "runs" / "digits"
    reps = f"--reps-file {runs}/vgg11_eps1/reps.pt --val-reps-file {runs}/resnet10_eps1/val_reps.pt"
    with pytest.raises(InputError, match="differ in their arch"):
        train_probe.main(f"-a vgg11 -d digits {reps} --runs {study}/other {QUIET}".split())


def test_cifar10_is_opened_where_it_is_said_to_be(tmp_path):
    folder = tmp_path / "elsewhere/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*cifar.BATCHES["train"], *cifar.BATCHES["val"]]):
        batch = {b"data": np.full((2, 3072), number, np.uint8), b"labels": [0, 1]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    where = f"--lmdb-file {folder.parent} --val-lmdb-file {folder}"
    args = train_probe.parse_args(f"-m {__file__} -a resnet18 -d cifar10 {where}".split())
    train_part, val_part = (probing.open_part(args, split) for split in ("train", "val"))
    assert (len(train_part), len(val_part)) == (10, 2)
    assert (val_part.pixels == 5).all()


def test_fast_images_are_other_images(tmp_path):
    write_lmdb(tmp_path / "train.lmdb", [(encoded_image("rgb", seed=0), 0)], ["a class"])
    words = ["-m", __file__, "-a", "resnet18", "-d", "imagenet50", "--lmdb-file", str(tmp_path / "train.lmdb")]
    exact = probing.open_part(train_probe.parse_args(words), "train")
    fast = probing.open_part(train_probe.parse_args([*words, "--fast-images"]), "train")
    assert fast.fast and not exact.fast and fast.fingerprint != exact.fingerprint


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", [True, False])
def test_cuda_gives_the_cpus_probes(resident):
    train_part, val_part = pixels("train"), pixels("val")
    settings = probes.Training(epochs=3, batch_size=64)
    expected = run([0, 1], train_part, val_part, settings)[-1]
    device = torch.device("cuda")
    epochs = probes.train(train_part, val_part, 10, [0, 1], settings, device=device, resident=resident)
    for a, b in zip(expected.probes, list(epochs)[-1].probes):
        assert torch.allclose(a.weight, b.weight, atol=1e-3)
