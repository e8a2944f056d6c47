"""Nodes: which there are, how they are named, what is read there."""

import pytest
import torch
from networks import save_digits, shake
from torch import nn

import inversion
import rep
import train_probe
from univ import results
from univ.data.images import TensorImages
from univ.errors import InputError
from univ.inversion.optimise import Inversion, Inverter
from univ.models import ARCHS, DIGITS_ARCHS, HEAD_INPUT, build_model
from univ.reps import nodes
from univ.reps.extract import extract_nodes
from univ.reps.nodes import Reader, find_nodes, list_nodes, node_shapes


class Block(nn.Module):
    """Two layers and a shortcut: the sum is changed in place after the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        out = self.conv2(self.norm(self.conv1(x)).relu())
        out += x
        return out.relu_()


class Net(nn.Module):
    """A stem, two blocks, tokens, a classifier; a part that never runs and one that gives no row per image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.embed = nn.Linear(4, 6)
        self.windows = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 1, batch_first=True)
        self.unused = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        tokens = self.embed(self.blocks(self.stem(x)).flatten(2).transpose(1, 2))
        tokens = self.windows(tokens.flatten(0, 1)).view_as(tokens)
        return self.fc(self.attention(tokens, tokens, tokens)[0].mean(dim=1))


LISTED = {
    "stem.0": (4, 16, 16),
    "stem.2": (4, 8, 8),
    "blocks.0.conv1": (4, 8, 8),
    "blocks.0": (4, 8, 8),
    "blocks.1.conv1": (4, 8, 8),
    "blocks.1": (4, 8, 8),
    "embed": (64, 6),
    "attention": (64, 6),
    "fc": (5,),
}


@pytest.fixture
def net():
    torch.manual_seed(0)
    network = Net().eval()
    return network


@pytest.fixture
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_layers_and_blocks_are_listed_in_order(net, images):
    assert node_shapes(net, images[:1]) == LISTED
    assert list_nodes(net, images[:1]) == list(LISTED)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with pytest.raises(InputError, match=r"Net does not take images \(2, 1, 32, 32\)"):
        list_nodes(net, images[:1, :1])


def test_a_training_network_is_left_as_it_was(net, images):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    list_nodes(net, images[:1])
    assert all(module.training for module in net.modules())
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


def test_libraries_networks():
    resnet = list_nodes(build_model("resnet50", "imagenet", seed=0))
    assert len(resnet) == 56 and resnet[:2] == ["conv1", "maxpool"] and resnet[-3:] == ["layer4.2", "avgpool", "fc"]
    assert sum(name.count(".") == 1 for name in resnet) == 16  # the blocks
    vit = node_shapes(build_model("timm:vit_tiny_patch16_224", "imagenet", seed=0))
    assert len(vit) == 50 and vit["blocks.3"] == (197, 192) and list(vit)[-1] == HEAD_INPUT  # its logits are "head" too


@pytest.mark.parametrize("arch", DIGITS_ARCHS)
def test_the_study_s_node_is_listed(arch):
    model = build_model(arch, "digits", seed=0)
    assert ARCHS["digits"][arch].node in list_nodes(model)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["blocks.*"], ["blocks.0", "blocks.1"]),
        (["**.conv1"], ["blocks.0.conv1", "blocks.1.conv1"]),
        (["blocks.?.conv[12]"], ["blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"]),
        (["fc", "s*", "fc"], ["fc", "stem"]),
        (["head", "blocks"], ["head", "blocks"]),
        (["all"], list(LISTED)),
        (["unused"], ["unused"]),
    ],
)
def test_patterns(net, images, patterns, names):
    assert find_nodes(net, patterns, images[:1]) == names


@pytest.mark.parametrize("pattern", ["blocks.0.con1", "*.conv1.*", "", "blocks.0.", "unused*"])
def test_an_unknown_node_is_answered_with_the_nearest(net, images, pattern):
    with pytest.raises(InputError, match=r"Net has no node .*; the nearest are") as found:
        find_nodes(net, [pattern], images[:1])
    if pattern == "blocks.0.con1":
        assert "nearest are blocks.0.conv1, " in str(found.value)


def test_one_pass_reads_every_node(net, images):
    calls = []
    counter = net.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), Reader(net, ["stem", "blocks.0.conv2", "blocks.1", "embed", "attention"]) as reader:
        values, output = reader(images), reader.output
        assert values["blocks.0.conv2"].min() < 0  # before the sum is changed in place
    counter.remove()
    assert len(calls) == 1 and output.equal(net(images))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with torch.no_grad():
        stem = net.stem(images)
        first = net.blocks[0]
        second = first.conv2(first.norm(first.conv1(stem)).relu())
        tokens = net.embed(net.blocks(stem).flatten(2).transpose(1, 2))
    close = {"stem": stem, "blocks.0.conv2": second, "blocks.1": net.blocks(stem), "embed": tokens}
    for name, value in close.items():
        assert torch.allclose(values[name], value.flatten(1), atol=1e-6), name
    assert values["attention"].shape == (5, 64 * 6)


def test_the_head_of_any_network_is_found(net, images):
    with torch.no_grad(), Reader(net, "head") as reader:
        assert torch.allclose(net.fc(reader(images)["head"]), reader.output, atol=1e-6)
        assert torch.equal(reader(images)["head"], reader.rep)


def test_pooling(net, images):
    def read(node, pool):
        with torch.no_grad(), Reader(net, node, pool) as reader:
            return reader(images)[node]

    maps, tokens = read("blocks.1", "none"), read("embed", "none")
    assert maps.shape == (5, 4, 8, 8) and tokens.shape == (5, 64, 6)
    assert read("blocks.1", "mean").allclose(maps.mean(dim=(2, 3))) and read("embed", "mean").allclose(tokens.mean(1))
    assert read("embed", "cls").equal(tokens[:, 0])
    assert read("fc", "mean").equal(read("fc", None)) and read("head", "flatten").equal(read("head", None))
    with pytest.raises(InputError, match=r"node 'blocks.1' gives \(N, 4, 8, 8\)"):
        read("blocks.1", "cls")
    with pytest.raises(InputError, match="unknown pooling 'max': choose from none, mean, cls, flatten"):
        read("fc", "max")
    with pytest.raises(InputError, match="'unused' is not reached"):
        read("unused", None)


def test_the_mean_is_over_space_where_the_channels_are_last():
    model = build_model("timm:swin_tiny_patch4_window7_224", "imagenet", seed=0).eval()
    with torch.no_grad(), Reader(model, ["patch_embed", "layers.1", "layers.1.blocks.1.mlp.fc1"], "mean") as reader:
        shapes = {name: tuple(value.shape) for name, value in reader(torch.rand(2, 3, 224, 224)).items()}
    assert shapes == {"patch_embed": (2, 96), "layers.1": (2, 192), "layers.1.blocks.1.mlp.fc1": (2, 768)}


def test_reducing_in_the_hook_and_gradients(net, images):
    images.requires_grad_(True)
    with Reader(net, ["stem", "blocks.1"], "none", lambda node, value: value.square().sum()) as reader:
        sums = reader(images)
        assert sums["stem"].ndim == 0
        (gradient,) = torch.autograd.grad(sums["blocks.1"], images)
    assert gradient.abs().sum() > 0


def test_extraction_at_several_nodes_equals_one_at_a_time(images):
    model = build_model("resnet10", "digits", seed=0).eval()
    how = {"batch_size": 2, "device": torch.device("cpu"), "quiet": True, "pool": "mean"}
    chosen, own = torch.tensor([3, 1, 4]), TensorImages(images, name="some")
    both = extract_nodes(model, own, chosen, nodes=["layer1", "layer4"], **how)
    for node in ("layer1", "layer4"):
        alone = extract_nodes(model, own, chosen, nodes=node, **how)
        assert both.at(node).reps.equal(alone.at(node).reps) and both.logits.equal(alone.logits)
    assert both.reps["layer4"].shape == (3, 64)


@pytest.mark.parametrize("node", ["layer2.0.conv1", "layer2.0.bn1", "layer3", "linear"])
def test_an_inversion_reads_the_node_itself(node, images):
    """A convolution whose batch norm is folded into it elsewhere."""
    model = build_model("resnet10", "digits", seed=0).eval()
    shake(model)
    inverter = Inverter(model, Inversion(iterations=3, step_size=0.5), node=node, pool="mean")
    with torch.no_grad():
        inverted = inverter(images[:2], images[2:4])
        with Reader(model, node, "mean") as reader:
            mine, target = (reader(batch)[node] for batch in (inverted.images, images[2:4]))
    expected = (mine - target).norm(dim=1) / target.norm(dim=1)
    assert torch.allclose(inverted.final_distance, expected, rtol=1e-3)
    assert (inverted.final_distance < inverted.start_distance).all()


# --- from the command line ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return save_digits(tmp_path_factory.mktemp("models"), ("resnet10", "resnext14_4x32d"))


@pytest.fixture
def compare(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ["-d", "digits", "-m", "digits", "-o", "eps1", "--model-names", "resnet10", "resnext14_4x32d"]
    return lambda *words: rep.main(
        [*models, "--model-dir", str(checkpoints), "--num-inputs", "40", "--device", "cpu", "--quiet", *words]
    )


def test_rep_reads_any_node(compare, tmp_path, monkeypatch):
    compare("-r", "cka", "--cache-dir", "cache")
    compare("-r", "cka", "--cache-dir", "cache", "--node", "layer[34]", "--node", "head", "--pool", "mean")
    own, *others = sorted(
        path.relative_to(tmp_path / "results").as_posix() for path in tmp_path.glob("results/**/cka_*.csv")
    )
    below = "cka/standard/10000/digits/cka_eps1_0.csv"
    assert own == below
    assert others == [f"nodes/{node}_mean/{below}" for node in ("head", "layer3", "layer4")]
    scores = {path: results.read_matrix(f"results/{path}").iloc[0, 1] for path in (own, *others)}
    assert len(set(scores.values())) == 3 and scores[own] == scores[others[0]]  # both models' own node is their head
    settings = {path: results.read_record(f"results/{path}")["settings"] for path in (own, others[1])}
    assert "node" not in settings[own] and "pool" not in settings[own]
    assert (settings[others[1]]["node"], settings[others[1]]["pool"]) == ("layer3", "mean")
    # what is there is kept, and the cache serves another measure
    monkeypatch.setattr("univ.models.Source.load", lambda *_, **__: pytest.fail("loaded again"))
    compare("-r", "cka", "proc", "--cache-dir", "cache", "--node", "layer3", "--pool", "mean")
    assert (tmp_path / "results/nodes/layer3_mean/procrustes").is_dir()


def test_wrong_nodes_on_the_command_line(compare, checkpoints, tmp_path, capsys):
    with pytest.raises(InputError, match="resnet10 has no node 'layer9'; the nearest are layer4"):
        compare("-r", "cka", "--node", "layer9")
    with pytest.raises(InputError, match=r"--node \*: resnet10 has no relu, which others have"):
        compare("-r", "cka", "--node", "*")
    with pytest.raises(InputError, match="cannot be a file name"):
        compare("-r", "cka", "--node", "../layer1")
    compare("--list-nodes")
    shown = capsys.readouterr().out
    assert "resnet10\nnode" in shown and "layer4.0.conv1  64 x 4 x 4              1,024" in shown
    with pytest.raises(SystemExit):
        files = ["--reps-file", __file__, "--val-reps-file", __file__]
        train_probe.parse_args(["-a", "x", "-d", "digits", *files, "--node", "x"])
    assert "-m CHECKPOINT" in capsys.readouterr().err


def test_inversions_and_probes_at_a_node_lie_apart(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device, node = ["--device", "cpu", "--quiet"], ["--node", "layer3", "--pool", "mean"]
    words = ["-d", "digits", "-m", "resnet10", "-e", "eps1", "--model-dir", str(checkpoints), "-n", "4", "-u", "50"]
    inversion.main([*words, "--iterations", "2", *device, *node])
    assert (tmp_path / "data/digits/inverted/nodes/layer3_mean/resnet10_eps1.pt").is_file()
    assert (tmp_path / "data/digits/inverted/target_indices.csv").is_file()
    train_probe.main(["-m", str(checkpoints / "resnet10.pt"), "-d", "digits", "--epochs", "0", *device, *node])
    run = tmp_path / "runs/nodes/layer3_mean/digits/resnet10"
    assert nodes.node_label("layer3", "mean", "") in (run / "reps.json").read_text()
    assert torch.load(run / "reps.pt").shape[1] == 32
