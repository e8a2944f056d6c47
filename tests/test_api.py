"""`import univ`: plain networks and arrays in, the same numbers as the scripts and the definitions out."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from networks import Tiny, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import univ
from univ.compare import pairwise
from univ.errors import InputError
from univ.measures import CARDS, Outputs, cka, disagreement, error_consistency, jaccard, mutual_knn, procrustes
from univ.reps.nodes import Reader

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Tiny(10).eval()


@pytest.fixture(scope="module")
def models():
    return {name: net(seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def reps():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 6))
    return {"x": x, "y": x @ generator.normal(size=(6, 9)), "z": generator.normal(size=(40, 3, 2)).astype(np.float32)}


def test_importing_is_cheap_and_the_names_are_there():
    code = "import sys, univ; assert 'torch' not in sys.modules; assert set(univ.__all__) <= set(dir(univ)); "
    code += "import univ.compare; univ.compare.pairwise; assert callable(univ.compare); univ.extract"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'comparison'"):
        _ = univ.comparison


# --- extract --------------------------------------------------------------------------------------------------------


def test_head_is_the_input_of_the_last_layer(models, images):
    found = univ.extract(models, images, batch=7, quiet=True)
    for name, model in models.items():
        with torch.no_grad():
            x = model.norm1(model.conv1(images)).relu()
            expected = model.norm2(model.conv2(x)).relu().mean((2, 3))
        assert found[name].shape == (30, 16)
        torch.testing.assert_close(found[name], expected)


def test_nodes_and_logits(models, images):
    found = univ.extract(models, images, ["conv2", "logits"], quiet=True)
    assert list(found) == [f"{name}/{node}" for name in "abc" for node in ("conv2", "logits")]
    with torch.no_grad():
        torch.testing.assert_close(found["b/logits"], models["b"](images))
    one = univ.extract(models["a"], images, "conv2", quiet=True)
    assert one.equal(found["a/conv2"]) and one.shape == (30, 16 * 4 * 4)
    pooled = univ.extract(models["a"], images, "conv2", pool="mean", quiet=True)
    torch.testing.assert_close(pooled, one.unflatten(1, (16, 16)).mean(2))
    both = univ.extract(models["a"], images, ["head", "logits"], quiet=True)
    torch.testing.assert_close(models["a"].head(both["head"]), both["logits"])


def test_one_image_set_in_many_forms(models, images, tmp_path):
    expected = univ.extract(models, images, quiet=True)
    pairs = TensorDataset(images, torch.arange(30))
    for form in (images.numpy(), pairs, [image for image in images], DataLoader(pairs, batch_size=4)):
        found = univ.extract(models, form, batch=9, quiet=True)
        for name in models:
            torch.testing.assert_close(found[name], expected[name])
    bytes8 = (images * 255).round().to(torch.uint8)
    found = univ.extract(models["a"], bytes8, quiet=True)
    torch.testing.assert_close(found, univ.extract(models["a"], bytes8.float() / 255, quiet=True))


def test_all_models_see_the_same_images_of_a_loader_that_shuffles(images):
    twins = {"a": net(0), "b": net(0)}
    found = univ.extract(twins, DataLoader(TensorDataset(images), batch_size=8, shuffle=True), quiet=True)
    assert found["a"].equal(found["b"])


def test_models_are_left_as_they_were(images):
    model = tiny()
    model.train()
    model.model.norm1.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    found = univ.extract({"m": model}, images, quiet=True)["m"]
    assert [module.training for module in model.modules()] == modes
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with Reader(model.eval(), "head") as tap, torch.no_grad():
        model(images)
        torch.testing.assert_close(found, tap.rep)


def test_double_precision_stays(images):
    found = univ.extract(net(0).double(), images.double(), quiet=True)
    assert found.dtype == torch.float64


class Twice(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * 2


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda model, images: univ.extract(model, images, "layer9"), "no node 'layer9'"),
        (lambda model, images: univ.extract(model, images[:0]), "no images"),
        (lambda model, images: univ.extract(model, "nowhere"), "no folder of images nowhere"),
        (lambda model, images: univ.extract(model, 3), "not int"),
        (lambda model, images: univ.extract(model, [{"pixels": images[0]}]), "not dict"),
        (lambda model, images: univ.extract({"m": model}, images * float("nan")), "m: NaN or infinity at node 'head'"),
        (lambda model, images: univ.extract(Twice(), images), "no last layer"),
    ],
)
def test_bad_input_of_extract(what, message, models, images):
    with pytest.raises(InputError, match=message):
        what(models["a"], images)


# --- compare --------------------------------------------------------------------------------------------------------


def test_scores_are_the_measures(reps):
    table = univ.compare(reps, ["cka", "proc", "jacc", "mutual_knn"], k=5, quiet=True)
    assert list(table) == ["model1", "model2", "measure", "score", "low", "high", "p"]
    assert len(table) == 4 * 3 and table[["low", "high", "p"]].isna().all(axis=None)
    score = table.set_index(["measure", "model1", "model2"])["score"]
    for a, b in ("xy", "xz", "yz"):
        x, y = reps[a].reshape(40, -1), reps[b].reshape(40, -1)
        assert score["cka", a, b] == pytest.approx(cka(x, y), abs=1e-12)
        assert score["proc", a, b] == pytest.approx(procrustes(x, y), abs=1e-12)
        assert score["jacc", a, b] == pytest.approx(jaccard(x, y, k=5), abs=1e-12)
        assert score["mutual_knn", a, b] == pytest.approx(mutual_knn(x, y, neighbors=5), abs=1e-12)


def test_intervals_and_p_values_are_those_of_the_driver(reps):
    table = univ.compare(reps, "cka", ci=0.9, permutations=19, seed=3, quiet=True)
    measure = CARDS["cka"].make()
    tensors = {name: torch.from_numpy(rep) for name, rep in reps.items()}
    found = pairwise(tensors, [measure], ci=0.9, permutations=19, seed=3)["cka"]
    for row in table.itertuples():
        cell = row.model2, row.model1
        expected = [of.at[cell] for of in (found.scores, found.low, found.high, found.p_values)]
        assert [row.score, row.low, row.high, row.p] == pytest.approx(expected)
    assert table["p"].tolist()[0] == pytest.approx(1 / 20)  # y is a linear map of x


def test_directed_measures_have_both_directions(reps):
    table = univ.compare(reps, "linreg", quiet=True).set_index(["model1", "model2"])["score"]
    assert len(table) == 6 and table["x", "y"] != table["y", "x"]
    matrix = pairwise({k: torch.from_numpy(v) for k, v in reps.items()}, [CARDS["linreg"].make()])["linreg"].scores
    assert table["x", "y"] == pytest.approx(matrix.at["y", "x"])  # model1 is the column, as in result files


def test_predictions(reps):
    generator = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(50, 4, generator=generator) for name in "ab"}
    labels = torch.randint(4, (50,), generator=generator)
    table = univ.compare(logits, ["dis", "error_consistency"], labels=labels, quiet=True).set_index("measure")["score"]
    a, b = (each.argmax(1) for each in logits.values())
    assert table["dis"] == pytest.approx(disagreement(a, b))
    assert table["error_consistency"] == pytest.approx(error_consistency(a, b, labels))
    made = CARDS["jsd"].make()
    assert univ.compare(logits, made, quiet=True)["score"].item() == pytest.approx(made(*map(Outputs, logits.values())))


@pytest.mark.parametrize(
    ("change", "measures", "settings", "message"),
    [
        ({}, "ckaa", {}, "'ckaa' is no measure; measures of pairs: .*cka"),
        ({}, "mag", {}, "'mag' is a number of one model"),
        ({}, [], {}, "at least one measure"),
        ({}, ["cka", "dis"], {}, "cka read representations, dis logits"),
        ({}, "cka", {"k": 3}, "none of these measures has the setting k"),
        ({}, "jacc", {"k": 40}, "jacc: .*40"),
        ({"w": np.zeros((39, 2))}, "cka", {}, "different numbers of samples.*39"),
        ({"w": [[1.0, 2.0]] * 40}, "cka", {}, "w: expected a real torch tensor"),
        ({"w": np.zeros(40)}, "cka", {}, r"w: expected one row per sample.*\(40,\)"),
        ({"w": np.full((40, 2), np.nan)}, "cka", {}, "cka: w: .*NaN"),
        ({"z": np.zeros((40, 6))}, "error_consistency", {}, "needs labels"),
        ({}, "cka", {"ci": 2.0}, "between 0 and 1"),
    ],
)
def test_bad_input_of_compare(change, measures, settings, message, reps):
    with pytest.raises(ValueError, match=message):
        univ.compare(reps | change, measures, quiet=True, **settings)


def test_one_model_is_no_comparison(reps):
    for few in ({"x": reps["x"]}, [reps["x"], reps["y"]]):
        with pytest.raises(InputError, match="at least two models, as a dict"):
            univ.compare(few, "cka")


# --- heatmap --------------------------------------------------------------------------------------------------------


def test_heatmap_shows_the_scores(reps):
    scores = univ.compare(reps, ["cka", "proc", "linreg"], quiet=True)
    for measure in ("cka", "proc", "linreg"):
        panel = univ.heatmap(scores, measure).axes[0]
        names, cells = [text.get_text() for text in panel.get_xticklabels()], panel.images[0].get_array()
        for row in scores[scores["measure"] == measure].itertuples():
            shown = cells[names.index(row.model1), names.index(row.model2)]
            assert shown == pytest.approx(CARDS[measure].similarity(row.score))
    assert univ.heatmap(scores[scores["measure"] == "cka"]).axes[0].images
    for measure in (None, "jacc"):
        with pytest.raises(InputError, match=r"no scores of .*: there are cka, proc, linreg"):
            univ.heatmap(scores, measure)


# --- invert, train_probe, load --------------------------------------------------------------------------------------


def test_inversion_of_a_plain_network(images):
    seeds, targets = images[:5], images[5:10]
    model = net(0)
    found = univ.invert(model, seeds, targets, iterations=40, step_size=0.2, batch=2, quiet=True)
    assert found.images.shape == seeds.shape and 0 <= found.images.min() <= found.images.max() <= 1
    reached, wanted, begun = (univ.extract(model, x, quiet=True) for x in (found.images, targets, seeds))
    for distance, rep in ((found.final_distance, reached), (found.start_distance, begun)):
        torch.testing.assert_close(distance, (rep - wanted).norm(dim=1) / wanted.norm(dim=1), rtol=1e-3, atol=1e-5)
    assert (found.final_distance < found.start_distance / 2).all()


@pytest.mark.parametrize(
    ("seeds", "targets", "message"),
    [
        (torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8), "one seed for every target"),
        (torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), r"\(n, 3, H, W\)"),
        (torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8) * 255, r"targets: expected pixels in \[0, 1\]"),
        (torch.full((2, 3, 8, 8), torch.nan), torch.rand(2, 3, 8, 8), "seeds: expected pixels"),
    ],
)
def test_bad_input_of_invert(seeds, targets, message):
    with pytest.raises(InputError, match=message):
        univ.invert(net(0), seeds, targets, quiet=True)


def test_a_probe_learns_what_is_linear():
    generator = np.random.default_rng(0)
    reps = generator.normal(size=(400, 5)).astype(np.float32)
    labels = reps[:, :3].argmax(axis=1)
    parts = reps[:300], labels[:300], reps[300:], labels[300:]
    probe = univ.train_probe(*parts, epochs=40, batch=50, lr=0.05, quiet=True)
    assert probe.weight.shape == (3, 5) and probe.accuracy > 0.9
    logits = reps[300:] @ probe.weight.numpy().T + probe.bias.numpy()
    assert (logits.argmax(1) == labels[300:]).mean() == pytest.approx(probe.accuracy)
    with pytest.raises(InputError, match="training: 300 representations, labels of shape"):
        univ.train_probe(reps[:300], labels, reps[300:], labels[300:])
    with pytest.raises(InputError, match="labels run from"):
        univ.train_probe(*parts, num_classes=2)


def test_load_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        univ.load(tmp_path / "resnet18.ckpt")
