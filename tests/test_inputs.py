"""A comparison's inputs: which models look at which images, and what they make of them."""

import dataclasses

import pandas as pd
import pytest
import torch
from digits_study import ARCHS, N_INVERTED, flags, forward, own_images, write_study

import rep
from univ.compare import inputs
from univ.compare.inputs import Models, model_folder, open_image_sets, open_targets
from univ.errors import InputError
from univ.models import Source, find_sources


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def started(study, tmp_path, monkeypatch):
    """Flags -> what they are, the models and the image sets; the working folder is new."""
    monkeypatch.chdir(tmp_path)

    def start(*more):
        args = rep.parse_args([*flags(study), *map(str, more)])
        return args, *inputs.start(args)

    return start


def without_loading(monkeypatch):
    monkeypatch.setattr(Source, "load", lambda *_, **__: pytest.fail("a model was loaded"))


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "eps1", "digits/eps1"])
def test_the_model_folder_may_be_the_folder_itself_or_hold_it(tmp_path, below):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vgg11.pt").touch()
    found = find_sources(["vgg11"], folder=model_folder("digits", "eps1", tmp_path), dataset="digits")
    assert found == {"vgg11": Source("vgg11", "vgg11", "digits", folder / "vgg11.pt")}


@pytest.mark.parametrize(("below", "message"), [("", "vgg11"), ("nowhere", r"nowhere.*--model-dir")])
def test_a_missing_checkpoint_and_a_missing_folder_are_named(tmp_path, below, message):
    with pytest.raises(FileNotFoundError, match=message):
        find_sources(["vgg11"], folder=model_folder("digits", "eps1", tmp_path / below), dataset="digits")


def test_models_take_images_of_one_size():
    sources = {name: Source(name, name, "imagenet", None) for name in ("resnet50", "timm:inception_v3")}
    with pytest.raises(InputError, match=r"different sizes .*'timm:inception_v3': 299.*--image-size.*--model-names"):
        _ = Models("imagenet", "eps3", sources, torch.device("cpu")).image_size
    assert Models("imagenet", "eps3", sources, torch.device("cpu"), size=96).image_size == 96
    assert Models("imagenet", "eps3", {"resnet50": sources["resnet50"]}, torch.device("cpu")).image_size == 224


def test_extractions_are_rows_of_a_forward_pass_in_the_order_chosen(study, started):
    _, models, (images,) = started("--num-inputs", 50, "--batch", 16)
    images = dataclasses.replace(images, chosen=images.chosen.flip(0))
    pixels, labels = own_images()
    assert len(images) == 50 and images.labels.equal(labels[images.chosen])
    for name, extraction in models.extractions(images).items():
        reps, logits = forward(study, name, pixels[images.chosen])
        assert torch.allclose(extraction.reps, reps, atol=1e-5) and torch.allclose(extraction.logits, logits, atol=1e-5)
    maps = models.extractions(images, flatten=False)
    assert list(maps) == ARCHS and max(extraction.reps.ndim for extraction in maps.values()) == 4


def test_the_cache_serves_the_same_images_weights_and_precision_only(started, monkeypatch):
    _, models, (images,) = started("--num-inputs", 20, "--cache-dir", "cache")
    made = models.extractions(images)
    without_loading(monkeypatch)
    fresh = dataclasses.replace(models)
    again = fresh.extractions(images)
    assert all(again[name].reps.equal(made[name].reps) for name in ARCHS)
    others = [
        (fresh, dataclasses.replace(images, chosen=images.chosen.flip(0))),
        (fresh, dataclasses.replace(images, source="vgg11")),
        (dataclasses.replace(models, precision="bf16"), images),
        (dataclasses.replace(models, sources={"vgg11": models.sources["resnet10"]}), images),
    ]
    for looking, seen in others:
        with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
            looking.extractions(seen)


# --- images ---------------------------------------------------------------------------------------------------------


def test_an_index_file_is_read_under_either_spelling_of_its_tag_or_drawn_and_kept(tmp_path, started):
    (tmp_path / "results/indices/digits").mkdir(parents=True)
    (tmp_path / "results/indices/digits/indices_10.0.csv").write_text(",0\n0,7\n1,3\n")
    _, _, (images,) = started("-e", "10")
    assert images.chosen.tolist() == [7, 3] and (images.inverted, images.source) == (False, "")
    _, _, (drawn,) = started("-e", "2", "--num-inputs", 30)
    kept = pd.read_csv(tmp_path / "results/indices/digits/indices_2.csv")["0"].tolist()
    _, _, (again,) = started("-e", "2")
    assert drawn.chosen.tolist() == again.chosen.tolist() == kept and len(set(kept)) == 30


def test_inverted_images_are_one_set_for_each_model(study, started):
    _, _, sets = started("-i", 1)
    assert [images.source for images in sets] == ARCHS
    assert len({images.identity for images in sets}) == 3 and {len(images) for images in sets} == {N_INVERTED}
    report = pd.read_csv(study / "data/digits/inverted/resnet10_eps1.csv")
    assert sets[1].labels.tolist() == report["target_label"].tolist()
    _, _, first = started("-i", 1, "--num-inputs", 7)
    assert first[1].labels.tolist() == report["target_label"].tolist()[:7]
    with pytest.raises(InputError, match="--num-inputs 41: only 40 inverted images"):
        started("-i", 1, "--num-inputs", 41)


def test_pooled_images_are_one_set_for_all_models(started):
    _, _, (images,) = started("-i", 1, "-s", 1)
    assert (len(images), images.inverted, images.source) == (3 * N_INVERTED, True, "")


def test_labels_without_a_report_are_those_of_the_flag_or_unknown(study, tmp_path, started):
    for path in (study / "data/digits/inverted").glob("*.pt"):
        (tmp_path / path.name).symlink_to(path)
    _, _, sets = started("-i", 1, "--inverted-imgs-dir", tmp_path)
    assert (sets[0].labels == -1).all()
    (tmp_path / "labels.csv").write_text("".join(f"{i % 10}\n" for i in range(N_INVERTED)))
    _, _, sets = started("-i", 1, "--inverted-imgs-dir", tmp_path, "--labels-path", tmp_path / "labels.csv")
    assert sets[0].labels[8:12].tolist() == [8, 9, 0, 1]


def test_targets_are_those_of_every_report(study, tmp_path, started):
    args, models, _ = started("-i", 1, "-r", "stir")
    with pytest.raises(InputError, match="inverted towards different images"):
        open_targets(args, models)
    source = study / "data/digits/inverted/vgg11_eps1"
    for arch in ARCHS:
        (tmp_path / f"{arch}_eps1.pt").symlink_to(source.with_suffix(".pt"))
        (tmp_path / f"{arch}_eps1.csv").symlink_to(source.with_suffix(".csv"))
    args, models, _ = started("-i", 1, "-r", "stir", "--inverted-imgs-dir", tmp_path, "--num-inputs", 9)
    targets = open_targets(args, models)
    assert targets.chosen.tolist() == pd.read_csv(source.with_suffix(".csv"))["target_index"].tolist()[:9]
    assert not targets.inverted
    (tmp_path / "resnet10_eps1.csv").unlink()
    assert (open_image_sets(args, models)[1].labels == -1).all()
    with pytest.raises(InputError, match=r"no report .*resnet10_eps1\.csv"):
        open_targets(args, models)
