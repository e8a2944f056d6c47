"""Pictures of one's own, `folder:PATH`: how they are seen, measured, trained on, compared and reported."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from commands import ROOT, module_of
from image_files import SHAPES, make_pictures
from PIL import Image
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

import cifar10_training
import compare_probes
import func
import imagenet_training
import inversion
import rep
import subgroup_sim
import train_probe
from univ import results
from univ.data import (
    DatasetNames,
    dataset_name,
    find_dataset,
    folders,
    indices,
    measure_folder,
    open_images,
    open_training,
)
from univ.data.images import TensorImages
from univ.data.transforms import ImageNetAugmentation, SmallImageAugmentation
from univ.errors import InputError
from univ.models import build_model, checkpoints, default_models
from univ.show import plots
from univ.utils import folder2lmdb

RECIPES = {"cifar10": (32, [T.Resize(32), T.CenterCrop(32)]), "imagenet": (224, [T.Resize(256), T.CenterCrop(224)])}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder that no test writes to."""
    return make_pictures(tmp_path_factory.mktemp("folders") / "my shapes")


@pytest.fixture
def own(pictures, tmp_path):
    """A copy of it, in the working folder of the test."""
    shutil.copytree(pictures, tmp_path / "shapes")
    return tmp_path / "shapes"


@pytest.mark.parametrize("recipe", RECIPES)
def test_images_and_statistics_are_torchvisions(own, recipe):
    size, transform = RECIPES[recipe]
    name = f"folder:{own}"
    measure_folder(name, recipe)
    reference = ImageFolder(own / "train", T.Compose([*transform, T.ToTensor()]))
    dataset, pixels = find_dataset(name), torch.stack([image for image, _ in reference])
    assert (dataset.image_size, dataset.num_classes, dataset.name) == (size, 3, "shapes")
    np.testing.assert_allclose(dataset.mean, pixels.double().mean(dim=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.double().std(dim=(0, 2, 3), correction=0), rtol=1e-6)
    levels = (pixels * 255).round().double() / 255  # without float32's rounding
    np.testing.assert_allclose(dataset.std, levels.std(dim=(0, 2, 3), correction=0), rtol=1e-12)
    for split in ("train", "val"):
        images = open_images(name, split, purpose="evaluation")
        reference = ImageFolder(own / split, reference.transform)
        assert images.labels.tolist() == reference.targets
        for index in (0, len(images) - 1):
            assert torch.equal(images[index][0], reference[index][0])


@pytest.mark.parametrize(
    "recipe, augmentation, weight_decay, held",
    [("cifar10", SmallImageAugmentation, 5e-4, True), ("imagenet", ImageNetAugmentation, 1e-4, False)],
)
def test_the_recipe_decides_how_it_is_trained(own, recipe, augmentation, weight_decay, held):
    measure_folder(f"folder:{own}", recipe, 64)
    dataset = find_dataset(f"folder:{own}")
    train, val = open_training(f"folder:{own}")
    assert (dataset.weight_decay, len(train), len(val)) == (weight_decay, 36, 18)
    assert isinstance(train.augment, augmentation) and val.augment is None
    assert isinstance(train, TensorImages) is held and train[0][0].shape == (3, 64, 64)
    model = build_model("resnet18", f"folder:{own}", seed=0)
    assert model.normalizer.new_mean.flatten().tolist() == pytest.approx(dataset.mean)
    assert build_model("timm:resnet18", f"folder:{own}", seed=0).image_size == 64
    with pytest.raises(InputError, match=r"which models of folder:.*--model-names"):
        default_models(f"folder:{own}", "eps0")


def test_an_lmdb_file_is_the_same_data_set(own, tmp_path):
    packed = tmp_path / "packed" / "shapes"
    for split in ("train", "val"):
        folder2lmdb.main(["-f", str(own), "-s", split, "--out", str(packed), "--quiet"])
    names = [f"folder:{own}", f"folder:{packed}"]
    for name in names:
        measure_folder(name, "cifar10")
    records = [json.loads((path / folders.RECORD).read_text()) for path in (own, packed)]
    assert records[0] == records[1] and records[0]["classes"] == sorted(SHAPES[:3])
    for split in ("train", "val"):
        loose, together = (open_images(name, split) for name in names)
        assert loose.fingerprint == together.fingerprint and torch.equal(loose[5][0], together[5][0])


def test_it_is_measured_once(own, monkeypatch):
    measure_folder(f"folder:{own}", "cifar10")
    before = (own / folders.RECORD).read_bytes()
    monkeypatch.setattr(folders, "_measure", None)
    make_pictures(own / "more", train=1, val=1)
    (own / "more/train/disc/000.png").rename(own / "train/disc/new.png")
    measure_folder(f"folder:{own}", "cifar10")
    assert (own / folders.RECORD).read_bytes() == before


def test_names():
    assert dataset_name("digits") == "digits" and dataset_name("folder:some/where/My Cats & Dogs/") == "My_Cats_Dogs"
    assert dataset_name("folder:data/cifar10") == "cifar10_folder"
    for nothing in ("folder:", "folder:/"):
        with pytest.raises(InputError, match="names no folder: expected folder:PATH"):
            dataset_name(nothing)
    names = DatasetNames(["digits"])
    assert list(names) == ["digits", "folder:PATH"] and "folder:x" in names and "digits" in names and "x" not in names


def damage(own):
    for name in ("train/disc/003.jpg", "val/checks/002.png"):
        (own / name).write_bytes(b"no picture")


def one_colour(own):
    for path in own.glob("*/*/*"):
        Image.new("RGB", (40, 40)).save(path)


def keep_one_class(own):
    for split in ("train", "val"):
        for shape in SHAPES[1:3]:
            shutil.rmtree(own / split / shape)


def add_class(own):
    shutil.copytree(own / "train/disc", own / "train/blob")
    shutil.copytree(own / "val/disc", own / "val/blob")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda own: shutil.rmtree(own), "folder:.*shapes: there is no such folder"),
        (lambda own: shutil.rmtree(own / "val"), r"shapes holds no val/<class>/ and no val\.lmdb"),
        (lambda own: shutil.rmtree(own / "train"), r"shapes holds no train/<class>/ and no train\.lmdb"),
        (keep_one_class, r"shapes/train holds one class \(disc\): a classifier needs two or more"),
        (lambda own: (own / "val/disc").rename(own / "val/dics"), "differ in their classes .*train: disc; .*val: dics"),
        (lambda own: shutil.rmtree(own / "val/disc"), "differ in their classes .*only in .*train: disc"),
        (
            damage,
            r"2 of 54 pictures cannot be read: .*train/disc/003\.jpg: not an image.*; .*val/checks/002\.png: not an im",
        ),
        (one_colour, "all of one colour"),
        (lambda own: [path.unlink() for path in (own / "train/disc").iterdir()], "no images in 1 of the class folders"),
        (lambda own: (own / folders.RECORD).write_text("{}"), r"dataset\.json is damaged .*: recipe is missing"),
        (lambda own: (own / folders.RECORD).write_text('{"recipe": "mine"}'), r"dataset\.json .*recipe .*'mine'"),
    ],
)
def test_bad_folders_are_named(own, change, message, capsys, monkeypatch):
    change(own)
    with pytest.raises((InputError, FileNotFoundError), match=message) as found:
        measure_folder(f"folder:{own}", "cifar10")
    assert "\n" not in str(found.value)
    assert not list(own.parent.glob("shapes/.*"))


def test_what_was_measured_otherwise_is_refused(own):
    name = f"folder:{own}"
    with pytest.raises(InputError, match=r"no models are trained on .* yet: it has no dataset\.json"):
        open_training(name)
    with pytest.raises(InputError, match=r"no models are trained on .* yet: it has no dataset\.json"):
        build_model("resnet18", name)
    measure_folder(name, "cifar10", 40)
    with pytest.raises(InputError, match=r"recipe of cifar10 \(40 pixels\), not of imagenet: train with cifar10_tra"):
        measure_folder(name, "imagenet")
    with pytest.raises(InputError, match=r"images of 40 pixels, not 32: leave out --image-size, or remove the file"):
        measure_folder(name, "cifar10", 32)
    add_class(own)
    with pytest.raises(InputError, match=r"measured on other classes, 3 \(checks, disc, stripes\), than .* 4 \(blob"):
        find_dataset(name)


def test_other_pictures_of_the_same_classes(own, tmp_path):
    """A flat folder with its labels, and another folder of class folders."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for label, shape in enumerate(sorted(SHAPES[:3])):
        shutil.copy(own / "val" / shape / "000.png", flat / f"{label}.png")
    indices.write_labels(tmp_path / "labels.csv", torch.arange(3))
    images = open_images(f"folder:{own}", data_path=flat, labels_path=tmp_path / "labels.csv")
    assert images.labels.tolist() == [0, 1, 2] and torch.equal(images[1][0], open_images(f"folder:{own}")[6][0])
    with pytest.raises(InputError, match=r"--labels-path: the folders in .*val are the labels"):
        open_images(f"folder:{own}", labels_path=tmp_path / "labels.csv")
    two = make_pictures(tmp_path / "two", SHAPES[:2], val=2)
    with pytest.raises(InputError, match="two/val holds 2 classes, shapes has 3"):
        open_images(f"folder:{own}", data_path=two)


@pytest.mark.parametrize(
    "script, words, message",
    [
        (
            imagenet_training,
            ["-n", "100", "-d", "folder:x"],
            "-n chooses among ImageNet's classes, folder:x has its own",
        ),
        (cifar10_training, ["--image-size", "64"], r"--image-size is for pictures of your own \(folder:PATH\)"),
        (cifar10_training, ["--dataset", "folders:x"], "invalid choice: 'folders:x' .*'folder:PATH'"),
    ],
)
def test_flags_that_contradict_a_folder(script, words, message, capsys):
    with pytest.raises(SystemExit) as left:
        script.parse_args(words)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1


@pytest.mark.usefixtures("one_thread")
def test_every_script_takes_a_folder(own, monkeypatch):
    """Train, evaluate, invert, compare, probe, draw, report; none needs to be told what dataset.json says."""
    monkeypatch.chdir(own.parent)
    data, common, models = "folder:shapes", ["--device", "cpu", "--workers", "0", "--quiet"], "data/cnns/shapes"
    attack, archs = ["-o", "1", "-l", "1", "-p", "1"], ["vgg11", "resnet10"]
    for adv in "01":
        for arch in archs:
            train = ["--dataset", data, "-m", arch, "-e", "1", "-b", "12", "-s", f"{models}/eps{adv}"]
            cifar10_training.main([*train, "-a", adv, "--overwrite", *attack, *common])
            model = f"{models}/eps{adv}/{arch}.ckpt"
            evaluate = ["-d", data, "-t", "0", "-v", model, "--results-file", "results/accuracy.csv"]
            cifar10_training.main([*evaluate, *attack, *common])
            train_probe.main(["-m", model, "-d", data, "-b", "12", "--epochs", "1", *common])
        eps = f"eps{adv}"
        inversion.main(["-d", data, "-m", *archs, "-e", eps, "-n", "6", "--iterations", "2", *common])
        for inv in "01":
            which = ["-d", data, "-m", data, "-o", eps, "-i", inv, "--model-names", *archs, "--cache-dir", "cache"]
            rep.main([*which, "-r", "cka", *common])
            func.main([*which, "-f", "dis", *common])
    subgroup_sim.main(["-d", data, "--cache-dir", "cache", "--eps", "eps0", "eps1", "--measures", "cka", *common])
    compare_probes.main(common)
    plots.main(["--only", "data_effect", "inv_img_example", "--quiet"])
    module_of("scripts/report.py").main(["--summary", data, "--quiet"])

    assert json.loads((own / folders.RECORD).read_text())["image_size"] == 32
    assert (own.parent / "figs/inverted_shapes.png").is_file()
    scores = results.load_long_table("results")
    assert set(scores["dataset"]) == {"shapes"} and len(scores) == 2 * 2 * (1 + 2)
    assert set(results.load_evaluations(["results/accuracy.csv"])["dataset"]) == {"shapes"}
    assert set(results.load_subgroups("results")["dataset"]) == {"shapes"}
    assert set(results.load_probe_agreement("results")["dataset"]) == {"shapes"}
    accuracies = results.load_accuracies("results")
    assert set(accuracies["num_classes"]) == {3} and len(accuracies) == 2 * (2 + 4)
    page = (own.parent / "results/report.html").read_text()
    assert "shapes: compared images" in page and '<h2 id="inverted">' in page
    assert "# shapes: are robust" in (own.parent / "results/summary.md").read_text()


def test_models_of_other_pictures_are_compared_on_a_folder(own, monkeypatch):
    """Before anything was measured; their scores lie beside those of models that were trained on the folder."""
    monkeypatch.chdir(own.parent)
    for arch in ("vgg11", "resnet10"):
        checkpoints.save_checkpoint(own.parent / f"digits/{arch}.pt", build_model(arch, "digits", seed=0), epoch=1)
    words = ["-d", "folder:shapes", "-m", "digits", "-o", "eps1", "--model-dir", "digits", "--workers", "0", "--quiet"]
    rep.main([*words, "--model-names", "vgg11", "resnet10", "-r", "cka", "--device", "cpu"])
    assert (own.parent / "results/cka/standard/10000/shapes/digits/cka_eps1_0.csv").is_file()
    assert set(results.load_long_table("results")["dataset"]) == {"shapes/digits"}
    assert not (own / folders.RECORD).exists()


# --- the study file ---------------------------------------------------------------------------------------------------

STUDY = """
name: mine
data: folder:shapes
recipe: cifar10
models: [vgg11, resnet10]
eps: [eps0, eps1]
cached: [standard, inverted]
common: {workers: 0}
train: {epochs: 1, batch: 12, ckpt: 0, image-size: 32}
evaluate: {eps: 1, steps: 1}
invert: {num-imgs-to-invert: 16, iterations: 3}
compare: {rep: [cka, proc, jacc], knn: 2}
func: {func: [dis, jsd]}
probes: {batch: 12, epochs: 1}
"""


def run_study(place, *words):
    """What a person types in `place`, a folder that is neither the repository's nor that of the results."""
    (place / "mine.yaml").write_text(STUDY)
    command = ["bash", str(ROOT / "scripts/study.sh"), "mine.yaml", *words]
    settings = {"VENV": "none", "DEVICES": "cpu cpu", "OUT": str(place / "out")}
    settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=place, env={**os.environ, **settings}, capture_output=True, text=True, timeout=900
    )


def test_a_study_of_a_folder_is_planned_where_it_was_typed(own):
    done = run_study(own.parent, "-n")
    assert done.returncode == 0, done.stderr
    lines = [line.partition(" && ")[0] for line in done.stdout.splitlines() if line.startswith("python ")]
    planned = [shlex.split(line)[1:] for line in lines]
    trained = [words for words in planned if "--resume" in words]
    assert len(trained) == 4 and all(f"folder:{own}" in words for words in trained)
    for words in planned:
        commands.parse([words[0].removeprefix(f"{ROOT}/"), *words[1:]])
    scripts = {Path(words[0]).stem for words in planned}
    assert scripts == {"cifar10_training", "inversion", "rep", "func", "subgroup_sim", "train_probe", "compare_probes",
                       "plots", "report"}  # fmt: skip
    assert not (own / folders.RECORD).exists()


@pytest.mark.parametrize(
    "word, message",
    [
        ("data=folder:nowhere", "mine.yaml: folder:.*/nowhere: there is no such folder"),
        ("models=[]", "models: name those to train on folder:"),
        ("recipe=imagenet", "recipe: .*dataset.json is for that of cifar10"),
        ("recipe=resnet", "recipe: input should be"),
        ("training=elsewhere", "training: leave it out"),
        ("data=digits", "recipe: is for data: folder:PATH, digits has its own"),
    ],
)
def test_a_wrong_study_of_a_folder_is_one_line(own, word, message, monkeypatch):
    measure_folder(f"folder:{own}", "cifar10")
    (own.parent / "mine.yaml").write_text(STUDY)
    monkeypatch.chdir(own.parent)
    monkeypatch.setattr(sys, "argv", ["study.py", "mine.yaml", word])
    with pytest.raises(InputError, match=message):
        module_of("scripts/study.py").main()


@pytest.mark.slow
def test_a_folder_goes_through_a_whole_study(own):
    done = run_study(own.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    out = own.parent / "out"
    page, summary = ((out / "results/mine" / name).read_text() for name in ("report.html", "summary.md"))
    assert '<h2 id="inverted">' in page and summary.startswith("# shapes: are robust models")
    assert (out / "figs/inverted_shapes.png").is_file() and (out / "figs/rep_vs_pred_shapes_inverted.png").is_file()
    assert set(results.load_long_table(out / "results")["measure"]) == {"cka", "proc", "jacc", "dis", "jsd"}
    assert "to run" not in run_study(own.parent).stdout
