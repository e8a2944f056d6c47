"""Layers by layers: minibatch CKA against its definition and against packages, files, resuming."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from commands import module_of
from networks import save_digits, shake

from univ.compare import layers
from univ.compare.inputs import ImageSet
from univ.data.images import TensorImages
from univ.errors import InputError
from univ.measures import UndefinedScore, cka
from univ.measures.minibatch import MinibatchCKA, batch_gram
from univ.models import build_model, find_source
from univ.reps.nodes import Reader, list_nodes
from univ.show import maps

script = module_of("scripts/layers.py")


def hsic1(k, l):  # noqa: E741 - the symbols of the definition
    """Song et al. 2012, equation 5, with (B, B) kernels."""
    n = len(k)
    k, l = (kernel - np.diag(np.diag(kernel)) for kernel in (k, l))  # noqa: E741
    one = np.ones(n)
    total = np.trace(k @ l) + one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ l @ one
    return total / (n * (n - 3))


def defined(batches):
    """Nguyen et al. 2021, equation 2: lists of layers' (B, D) -> (L, L), in float64 and pair by pair."""
    kernels = [[rep.double().numpy() @ rep.double().numpy().T for rep in batch] for batch in batches]
    count = len(kernels[0])
    sums = np.array([[np.mean([hsic1(ks[i], ks[j]) for ks in kernels]) for j in range(count)] for i in range(count)])
    return sums / np.sqrt(np.outer(np.diag(sums), np.diag(sums)))


def layered(sizes, widths=(3, 40, 7), dtype=torch.float64, seed=0):
    """Batches of related layers of some widths."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(5, width, generator=generator, dtype=torch.float64) for width in widths]
    points = torch.randn(sum(sizes), 5, generator=generator, dtype=torch.float64)
    reps = [(points @ some + torch.randn(sum(sizes), some.shape[1], generator=generator)).clamp(min=0) for some in maps]
    return list(zip(*(rep.to(dtype).split(list(sizes)) for rep in reps)))


def streamed(batches):
    sums = MinibatchCKA()
    for batch in batches:
        sums.update(torch.stack([batch_gram(rep) for rep in batch]))
    return sums.cka().numpy()


@pytest.mark.parametrize("sizes", [(9, 8), (5, 4, 4), (30,)])
def test_the_sums_are_the_definition(sizes):
    batches = layered(sizes)
    assert np.abs(streamed(batches) - defined(batches)).max() < 1e-12


def test_float32_is_near_the_definition():
    batches = layered((60, 60), widths=(3, 5000, 64), dtype=torch.float32)
    assert np.abs(streamed(batches) - defined(batches)).max() < 1e-6


def test_one_batch_of_all_images_is_exact_cka():
    (batch,) = layered((40,))
    found = streamed([batch])
    for (i, x), (j, y) in itertools.product(enumerate(batch), repeat=2):
        assert found[i, j] == pytest.approx(cka(x, y), abs=1e-12)


def test_the_average_over_many_batches_is_exact_cka_in_expectation():
    (all_images,) = layered((3000,))
    batches = list(zip(*(rep.split(30) for rep in all_images)))
    exact = np.array([[cka(x, y) for y in all_images] for x in all_images])
    assert np.abs(streamed(batches) - exact).max() < 0.03  # about five standard errors over 100 batches


@pytest.mark.parametrize("far", [1e4, 1e8])
def test_an_image_far_from_all_others_does_not_drown_them(far):
    batches = layered((12, 12), dtype=torch.float32)
    for batch in batches:
        batch[1][3] *= far
    assert np.abs(streamed(batches) - defined(batches)).max() < 1e-6


@pytest.mark.parametrize("factor", [1e-15, 1e15])
def test_scale_does_not_matter(factor):
    batches = layered((12, 12), dtype=torch.float32)
    scaled = [(batch[0] * factor, *batch[1:]) for batch in batches]
    assert np.abs(streamed(scaled) - streamed(batches)).max() < 1e-6


def test_a_constant_layer_has_no_cka():
    batches = [(*batch, torch.full((len(batch[0]), 9), 0.1)) for batch in layered((8, 8), dtype=torch.float32)]
    with pytest.warns(UndefinedScore, match="self-HSIC of 1 layers is not positive"):
        found = streamed(batches)
    assert np.isnan(found[3]).all() and np.isnan(found[:, 3]).all() and np.isfinite(found[:3, :3]).all()


def test_wrong_batches_are_refused():
    with pytest.raises(ValueError, match="at least 4 images, got 3"):
        batch_gram(torch.ones(3, 2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        batch_gram(torch.full((4, 2), torch.inf))
    sums = MinibatchCKA()
    with pytest.raises(ValueError, match="at least one batch"):
        sums.cka()
    sums.update(torch.rand(2, 5, 5))
    with pytest.raises(ValueError, match="have 2 layers, got 3"):
        sums.update(torch.rand(3, 5, 5))
    with pytest.raises(ValueError, match="at least 4 images, got 3"):
        sums.update(torch.rand(2, 3, 3))


@pytest.mark.parametrize(("n", "most"), [(2000, 256), (9, 8), (8, 8), (4, 8), (17, 8), (1001, 100)])
def test_batches_are_as_equal_as_possible(n, most):
    sizes = layers.batch_sizes(n, most)
    assert sum(sizes) == n and max(sizes) <= most and max(sizes) - min(sizes) <= 1 and min(sizes) >= 4


# --- beside packages that do the same -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    model = build_model("resnet10", "digits", seed=0).eval()
    shake(model)
    return model.model.double()


@pytest.fixture(scope="module")
def batches():
    return torch.rand(3, 16, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()


def test_layers_come_in_the_order_asked_for(network, batches):
    names = ["layer4", "layer1", "head", "layer2.0.conv1"]
    found, back = ours(network, names, batches), ours(network, names[::-1], batches)
    assert np.abs(found - back[::-1, ::-1]).max() < 1e-12


def ours(network, names, batches):
    sums = MinibatchCKA()
    with torch.no_grad(), Reader(network, names, reduce=lambda _, rep: batch_gram(rep)) as reader:
        for images in batches:
            sums.update(torch.stack(list(reader(images).values())))
    return sums.cka().numpy()


def test_equal_to_torch_cka(network, batches):
    torch_cka = pytest.importorskip("torch_cka")
    names = list_nodes(network, batches[0][:1])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(batches)), batch_size=len(batches[0]))
    torch.set_default_dtype(torch.float64)  # of the vectors of ones it makes
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # both networks have one name
            peer = torch_cka.CKA(network, network, model1_layers=names, model2_layers=names)
            peer.compare(loader)
    finally:
        torch.set_default_dtype(torch.float32)
    # layers are in the order in which they return, as ours; it does not centre, which costs it 6 digits here
    assert np.abs(peer.hsic_matrix.numpy() - ours(network, names, batches)).max() < 1e-7


def test_equal_to_ckatorch(network, batches):
    ckatorch = pytest.importorskip("ckatorch")
    names = ["layer1", "layer2.0.conv1", "layer4"]
    found, reps = ours(network, names, batches), []
    with torch.no_grad(), Reader(network, names) as reader:
        for images in batches:
            reps.append(dict(reader(images)))
    stacked = {name: torch.stack([rep[name] for rep in reps]) for name in names}
    for (i, a), (j, b) in itertools.product(enumerate(names), repeat=2):
        assert found[i, j] == pytest.approx(ckatorch.cka_batch(stacked[a], stacked[b]).item(), abs=1e-8)


# --- from the command line ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return save_digits(tmp_path_factory.mktemp("models"), ("resnet10", "vgg11"))


@pytest.fixture
def compare(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ["-d", "digits", "-m", "digits", "-o", "eps1", "--model-dir", str(checkpoints)]
    return lambda *words: script.main([*words, *models, "--num-inputs", "40", "--device", "cpu", "--quiet"])


def read(name):
    return pd.read_csv(f"results/layers/digits/{name}_eps1_0.csv", dtype={"exp": str})


def test_two_models_from_the_command_line(compare, tmp_path, monkeypatch):
    compare("resnet10", "vgg11", "-b", "16")
    table = read("cka_resnet10_vgg11")
    assert list(table) == layers.COLUMNS and set(table["measure"]) == {"cka"}
    assert set(table["n"]) == {40} and set(table["batch"]) == {14}
    pairs = table.groupby(["model1", "model2"]).size().to_dict()
    assert pairs == {("resnet10", "resnet10"): 14**2, ("resnet10", "vgg11"): 14 * 15, ("vgg11", "vgg11"): 15**2}
    own = table[(table["model1"] == table["model2"]) & (table["layer1"] == table["layer2"])]
    assert np.allclose(own["score"], 1) and table["score"].max() <= 1 + 1e-12
    folder = tmp_path / "results/layers/digits"
    kept = {path.suffix: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(kept) == {".csv", ".json", ".pdf", ".png"}
    monkeypatch.setattr(layers, "minibatch_cka", lambda *_, **__: pytest.fail("computed again"))
    compare("resnet10", "vgg11", "-b", "16")
    assert kept == {path.suffix: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        compare("resnet10", "vgg11", "-b", "20")


def test_exact_scores_are_those_of_one_batch(compare):
    compare("resnet10", "-b", "64", "--pool", "mean")
    compare("resnet10", "-r", "cka", "proc", "--exact", "--cache-dir", "cache", "--pool", "mean")
    one_batch, exact = read("cka_resnet10_mean"), read("cka_exact_resnet10_mean")
    assert one_batch.drop(columns="score").equals(exact.drop(columns="score"))
    assert np.abs(one_batch["score"] - exact["score"]).max() < 1e-5  # float32 representations
    assert read("proc_exact_resnet10_mean")["score"].min() == 0


def test_what_memory_does_not_hold_is_read_in_several_passes(compare, monkeypatch):
    passes = []
    from univ.compare import inputs

    extract_nodes = inputs.extract_nodes
    monkeypatch.setattr(
        inputs, "extract_nodes", lambda *words, **how: passes.append(how["nodes"]) or extract_nodes(*words, **how)
    )
    monkeypatch.setattr(inputs, "READ_BYTES", 4 * 40 * (16 + 16 + 32))
    words = ["resnet10", "--exact", "--cache-dir", "cache", "--pool", "mean", "--node", "layer[234]", "layer2.0.conv1"]
    compare(*words)
    assert passes == [["layer2", "layer3"], ["layer4"], ["layer2.0.conv1"]]
    compare(*words, "-r", "proc")
    assert len(passes) == 3
    assert len(read("proc_exact_resnet10_layer[234]-layer2.0.conv1_mean")) == 16


def test_a_killed_run_continues_to_the_same_result(compare, monkeypatch):
    compare("resnet10", "-b", "8", "--results", "whole")
    monkeypatch.setattr(layers, "SAVE_EVERY", -1)
    update, updates = MinibatchCKA.update, []

    def killed(self, grams):
        updates.append(len(grams))
        if len(updates) == 3:
            raise KeyboardInterrupt
        update(self, grams)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MinibatchCKA, "update", killed)
        compare("resnet10", "-b", "8")
    monkeypatch.setattr(MinibatchCKA, "update", lambda self, grams: updates.append(len(grams)) or update(self, grams))
    compare("resnet10", "-b", "8")
    assert len(updates) == 6  # 40 images are 5 batches; the third was tried twice
    whole = pd.read_csv("whole/layers/digits/cka_resnet10_eps1_0.csv")
    pd.testing.assert_frame_equal(read("cka_resnet10"), whole)


def test_the_batches_do_not_follow_the_order_of_the_file(checkpoints):
    """A file sorted by class would fill each batch with few classes."""
    seen = []

    class Seen(TensorImages):
        def uint8(self, indices):
            seen.append(indices.tolist())
            return super().uint8(indices)

    images = ImageSet("digits", Seen(torch.rand(24, 3, 32, 32), name="some"), torch.arange(24))
    sources = {"vgg11": find_source("vgg11", folder=checkpoints, dataset="digits")}
    models = layers.Models("digits", "eps1", sources, torch.device("cpu"), quiet=True)
    how = {"pool": "flatten", "batch": 8, "seed": 0, "unfinished": checkpoints / "unfinished"}
    layers.minibatch_cka(models, images, {"vgg11": ["features.0"]}, **how)
    assert sorted(itertools.chain(*seen)) == list(range(24)) and seen[0] != list(range(8))
    assert all(some == sorted(some) for some in seen)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet10", "-r", "proc"], "the others want --exact"),
        (["resnet10", "--exact"], "--exact compares representations that are kept: say where with --cache-dir"),
        (["resnet10", "-b", "7"], "-b/--batch 7: batches of 8 images or more"),
        (["resnet10", "-r", "shape"], "invalid choice: 'shape'"),
    ],
)
def test_wrong_flags(compare, words, message, capsys):
    with pytest.raises(SystemExit) as left:
        compare(*words)
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_wrong_nodes(compare, capsys):
    with pytest.raises(InputError, match="vgg11 has no node 'layer1'; the nearest are classifier, features"):
        compare("resnet10", "vgg11", "--node", "layer1")
    with pytest.raises(InputError, match=r"resnet10 conv1 has the shape \(40, 8, 32, 32\)"):
        compare("resnet10", "--pool", "none", "--exact", "--cache-dir", "cache")
    compare("resnet10", "--list-nodes")
    assert "layer2.0.conv1" in capsys.readouterr().out


def test_a_heat_map_has_the_first_layers_below_and_left():
    names = ["a", "b", "c"]
    scores = np.arange(9.0).reshape(3, 3)
    table = layers.table({"model": names}, scores, "cka", 5, 5)
    figure = maps.layer_maps(table, "CKA")
    panel = figure.axes[0]
    assert np.array_equal(panel.images[0].get_array(), scores) and panel.images[0].origin == "lower"
    assert [text.get_text() for text in panel.get_yticklabels()] == names
    assert table[(table["layer1"] == "a") & (table["layer2"] == "c")]["score"].item() == 2
