"""Architectures, their nodes and the names of files: each network equals an evaluation that knows nothing of ours."""

import subprocess
import sys

import pytest
import robustness.cifar_models
import timm
import torch
import torchvision.models as TV
from networks import every_model, shake
from torch import nn

from univ.data import DATASETS
from univ.errors import InputError
from univ.models import (
    ARCHS,
    DIGITS_ARCHS,
    HEAD_INPUT,
    Classifier,
    arch_from_filename,
    build_model,
    checkpoints,
    default_models,
    file_stem,
    find_arch,
    find_checkpoint,
    load_model,
)
from univ.models.precision import arithmetic
from univ.reps.nodes import Reader

QUICK = {
    *(("digits", arch) for arch in DIGITS_ARCHS),
    ("imagenet", "resnet18"),
    ("imagenet", "tiny_vit_5m"),
    ("cifar10", "resnet18"),
    ("cifar10", "vgg16"),
}


# --- the same networks and nodes, written out ---------------------------------------------------------------------


def _torchvision_resnet(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    rep = net.layer4(net.layer3(net.layer2(net.layer1(x)))).mean(dim=(2, 3))
    return rep, net.fc(rep)


def _torchvision_densenet(net, x):
    features = net.features(x)  # ends with the batch norm; the ReLU comes in forward()
    return features.mean(dim=(2, 3)), net.classifier(features.relu().mean(dim=(2, 3)))


def _torchvision_vgg(net, x):
    rep = net.classifier[:6](net.avgpool(net.features(x)).flatten(1))
    return rep, net.classifier[6](rep)


def _tiny_vit(net, x):
    return net.forward_head(net.forward_features(x), pre_logits=True), net(x)


def _cifar_resnet(net, x):
    x = net.layer1(nn.functional.relu(net.bn1(net.conv1(x))))
    last = net.layer4(net.layer3(net.layer2(x)))
    return last.flatten(1), net.linear(nn.functional.avg_pool2d(last, 4).flatten(1))


def _cifar_densenet(net, x):
    for dense, transition in ((net.dense1, net.trans1), (net.dense2, net.trans2), (net.dense3, net.trans3)):
        x = transition(dense(x if dense is not net.dense1 else net.conv1(x)))
    last = net.bn(net.dense4(x))
    return last.mean(dim=(2, 3)), net.linear(last.relu().mean(dim=(2, 3)))


def _cifar_vgg(net, x):
    rep = net.features(x).flatten(1)
    return rep, net.classifier(rep)


def _pooled(evaluate):
    """The digits' networks are compared at the input of their last layer."""

    def pooled(net, x):
        rep, logits = evaluate(net, x)
        return rep.unflatten(1, (64, 16)).mean(dim=2), logits

    return pooled


def _wide_resnet50_4(num_classes):
    return TV.ResNet(TV.resnet.Bottleneck, [3, 4, 6, 3], num_classes=num_classes, width_per_group=256)


def _tiny_vit_5m(num_classes):
    return timm.create_model("tiny_vit_5m_224", num_classes=num_classes)


IMAGENET_STATS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_STATS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# network built without our tables (None: the digits' networks, which only our tables know), evaluation, width of the
# representation
IMAGENET = {
    "resnet18": (TV.resnet18, _torchvision_resnet, 512),
    "resnet50": (TV.resnet50, _torchvision_resnet, 2048),
    "wide_resnet50_2": (TV.wide_resnet50_2, _torchvision_resnet, 2048),
    "wide_resnet50_4": (_wide_resnet50_4, _torchvision_resnet, 2048),
    "resnext50_32x4d": (TV.resnext50_32x4d, _torchvision_resnet, 2048),
    "densenet161": (TV.densenet161, _torchvision_densenet, 2208),
    "vgg16_bn": (TV.vgg16_bn, _torchvision_vgg, 4096),
    "tiny_vit_5m": (_tiny_vit_5m, _tiny_vit, 320),
}
CIFAR10 = {
    "resnet18": (robustness.cifar_models.ResNet18, _cifar_resnet, 8192),
    "resnet50": (robustness.cifar_models.ResNet50, _cifar_resnet, 32768),
    "densenet161": (robustness.cifar_models.DenseNet161, _cifar_densenet, 2208),
    "vgg16": (robustness.cifar_models.VGG16, _cifar_vgg, 512),
}
DIGITS = {
    "vgg11": (None, _cifar_vgg, 64),
    "resnet10": (None, _pooled(_cifar_resnet), 64),
    "densenet17": (None, _cifar_densenet, 64),
    "resnext14_4x32d": (None, _torchvision_resnet, 256),
}
DIGITS_STATS = DATASETS["digits"].mean, DATASETS["digits"].std
REFERENCE = {("imagenet", arch): (*about, IMAGENET_STATS) for arch, about in IMAGENET.items()}
REFERENCE |= {("cifar10", arch): (*about, CIFAR_STATS) for arch, about in CIFAR10.items()}
REFERENCE |= {("digits", arch): (*about, DIGITS_STATS) for arch, about in DIGITS.items()}
for _arch in ("wide_resnet50_2", "wide_resnet50_4", "resnext50_32x4d"):  # trained with ImageNet's statistics
    REFERENCE["cifar10", _arch] = REFERENCE["imagenet", _arch]


@pytest.mark.parametrize("train_set, arch", every_model(QUICK))
def test_representation_and_logits_equal_an_independent_evaluation(train_set, arch):
    build, evaluate, width, (mean, std) = REFERENCE[train_set, arch]
    model = build_model(arch, train_set, seed=0).eval()
    shake(model)
    size, classes = (224, 1000) if train_set == "imagenet" else (32, 10)
    assert (model.image_size, model.num_classes) == (size, classes)
    side = 96 if size == 224 and arch != "tiny_vit_5m" else size  # convolutional networks take any size: save time
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1  # beyond [0, 1] too
    with torch.no_grad(), Reader(model) as tap:
        logits = model(images)
        rep = tap.rep

    network = build(num_classes=classes) if build else model.model
    network.load_state_dict(model.model.state_dict())
    pixels = torch.stack([(images.clamp(0, 1)[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        expected_rep, expected_logits = evaluate(network.eval(), pixels)
    assert rep.shape == (2, width)
    assert logits.shape == (2, classes)
    torch.testing.assert_close(rep, expected_rep, rtol=1e-4, atol=1e-5 * expected_rep.abs().max().item())
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5 * expected_logits.abs().max().item())
    if "densenet" in arch:
        assert (rep < 0).any(), "the node is read before its ReLU"


@pytest.mark.parametrize("train_set, arch", every_model(QUICK - {("imagenet", "tiny_vit_5m")}))
def test_the_last_linear_layer_makes_the_logits(train_set, arch):
    """Inversion optimises its input, post-ReLU and pooled, in every architecture."""
    model = build_model(arch, train_set, num_classes=7, seed=0).eval()
    with torch.no_grad(), Reader(model, HEAD_INPUT) as tap:
        logits = model(torch.rand(2, 3, model.image_size, model.image_size))
        head_rep = tap.rep
    assert model.head.out_features == 7
    torch.testing.assert_close(model.head(head_rep), logits)
    if arch != "tiny_vit_5m":  # whose last features are normalised, not rectified
        assert (head_rep >= 0).all()


def test_densenets_node_is_read_before_the_relu_that_works_in_place():
    """The network overwrites the very tensor that a hook on its node sees; a small one shows it as well."""
    network = TV.DenseNet(growth_rate=4, block_config=(1, 1, 1, 1), num_init_features=8, num_classes=10)
    model = Classifier(network, ARCHS["imagenet"]["densenet161"], "densenet", "cifar10", 10).eval()
    shake(model)
    images = torch.rand(2, 3, 64, 64)
    seen = []
    hook = network.features.norm5.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad(), Reader(model) as tap:
        logits = model(images)
        rep = tap.rep
        hook.remove()
        expected, expected_logits = _torchvision_densenet(network, model.normalizer(images))
    assert (seen[0] >= 0).all(), "the trap is there: what was seen is rectified by now"
    assert (rep < 0).any()
    torch.testing.assert_close(rep, expected)
    torch.testing.assert_close(logits, expected_logits)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS["imagenet"])
def test_every_imagenet_network_is_built_for_every_number_of_classes(arch):
    for count in (1000, 100, 50, 10):
        assert build_model(arch, "imagenet", count).head.out_features == count


def test_a_training_set_has_its_number_of_classes():
    for train_set, count in {"imagenet": 1000, "imagenet100": 100, "imagenet50": 50, "cifar10": 10}.items():
        model = build_model("resnet18", train_set, seed=0)
        assert model.num_classes == model.head.out_features == count


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (build_model("resnet10", "digits", seed=seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_normaliser_clamps_and_keeps_gradients():
    model = build_model("vgg11", "digits", seed=0).eval()
    images = torch.tensor([-1.0, 0.25, 2.0]).view(3, 1, 1, 1).expand(3, 3, 32, 32).clone().requires_grad_()
    normalised = model.normalizer(images)
    mean, std = DATASETS["digits"].mean[0], DATASETS["digits"].std[0]
    assert normalised[:, 0, 0, 0].tolist() == pytest.approx([-mean / std, (0.25 - mean) / std, (1 - mean) / std])
    normalised.sum().backward()
    assert images.grad[1].eq(1 / torch.tensor(std)).all() and not images.grad[[0, 2]].any()


# --- any classifier of a library ------------------------------------------------------------------------------------

LIBRARY = [
    ("timm:resnet10t", "fc", 512, 176),
    ("timm:convnext_atto", "head.fc", 320, 224),
    ("timm:vit_tiny_patch16_224", "head", 192, 224),
    pytest.param("timm:vit_tiny_patch16_224.augreg_in21k", "head", 192, 224, marks=pytest.mark.slow),
    pytest.param("timm:efficientnet_b0", "classifier", 1280, 224, marks=pytest.mark.slow),
    pytest.param("timm:swin_tiny_patch4_window7_224", "head.fc", 768, 224, marks=pytest.mark.slow),
    pytest.param("timm:mixer_s32_224", "head", 512, 224, marks=pytest.mark.slow),
    pytest.param("torchvision:mobilenet_v3_small", "classifier.3", 1024, 224, marks=pytest.mark.slow),
    pytest.param("torchvision:vit_b_32", "heads.head", 768, 224, marks=pytest.mark.slow),
    ("torchvision:shufflenet_v2_x0_5", "fc", 1024, 224),
]


@pytest.mark.parametrize("num_classes", [100, 64])  # 64: as many as channels elsewhere in the network
def test_where_a_convolution_classifies_its_pooled_input_is_the_representation(num_classes):
    model = build_model("torchvision:squeezenet1_1", "imagenet", num_classes, seed=0).eval()
    assert model.spec.head == "classifier.1" and model.head.out_channels == num_classes
    images = torch.rand(2, 3, 224, 224)
    for node in (None, "head"):
        with torch.no_grad(), Reader(model, node) as tap:
            model(images)
            expected = model.model.features(model.normalizer(images)).mean(dim=(2, 3))
            torch.testing.assert_close(tap.rep, expected)


def test_another_number_of_classes_is_named_where_a_convolution_classifies(tmp_path):
    checkpoints.save_checkpoint(
        tmp_path / "w.ckpt", build_model("torchvision:squeezenet1_1", "imagenet", 7, seed=0), epoch=1
    )
    with pytest.raises(InputError, match="has 7 classes, expected the 100"):
        load_model("torchvision:squeezenet1_1", "imagenet100", tmp_path / "w.ckpt")


@pytest.mark.parametrize("arch, head, width, size", LIBRARY)
def test_any_classifier_of_a_library_needs_no_entry(arch, head, width, size):
    model = build_model(arch, "imagenet100", seed=0).eval()
    shake(model)
    assert (model.spec.head, model.image_size, model.num_classes) == (head, size, 100)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad(), Reader(model) as tap:
        logits = model(images)
        rep = tap.rep
        assert rep.shape == (2, width)
        torch.testing.assert_close(model.head(rep), logits)
        if arch.startswith("timm:"):
            pixels = model.normalizer(images)
            expected = model.model.forward_head(model.model.forward_features(pixels), pre_logits=True)
            torch.testing.assert_close(rep, expected)


def test_a_librarys_classifier_has_its_own_statistics():
    half = torch.full((3, 1, 1), 0.5)
    assert torch.equal(build_model("timm:vit_tiny_patch16_224", "cifar10").normalizer.new_mean, half)
    imagenet = build_model("torchvision:shufflenet_v2_x0_5", "cifar10").normalizer
    assert imagenet.new_std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_a_network_that_averages_two_heads_is_refused():
    with pytest.raises(InputError, match="no last layer whose output is the logits"):
        build_model("timm:deit_tiny_distilled_patch16_224", "imagenet")


@pytest.mark.parametrize(
    "arch, message",
    [
        ("resnet19", r"unknown architecture 'resnet19' .* choose from resnet18, .*, or any classifier"),
        ("timm:resnet1o1", r"timm has no classifier called 'resnet1o1': did you mean one of .*resnet101"),
        ("timm:resnet18.nobody", r"timm has no classifier called 'resnet18.nobody'.*resnet18\."),
        ("timm:hf-hub:someone/resnet", "timm has no classifier"),
        ("torchvision:resnet1o1", r"torchvision has no classifier .*resnet101"),
        ("torchvision:fcn_resnet50", "torchvision has no classifier"),  # a network for segmentation
        ("timm:", "unknown architecture"),
    ],
)
def test_an_unknown_architecture_is_answered_with_the_known_ones(arch, message):
    with pytest.raises(InputError, match=message):
        find_arch(arch, "imagenet")


def test_sat6_and_unknown_sets_have_no_models():
    for name in ("sat6", "mnist"):
        with pytest.raises(InputError, match=f"no models are trained on '{name}': choose from imagenet, .*digits"):
            build_model("resnet18", name)


def test_the_study_compares_these_models():
    eight = list(ARCHS["imagenet"])
    assert len(eight) == 8 and default_models("imagenet", "eps0") == default_models("imagenet", "eps3") == eight
    six = ["resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4", "tiny_vit_5m", "vgg16_bn"]
    assert default_models("imagenet", "eps025") == default_models("imagenet", "eps1") == six
    four = ["resnet50", "wide_resnet50_2", "densenet161", "vgg16_bn"]
    assert default_models("imagenet100", "eps3") == default_models("imagenet50", "eps0") == four
    assert len(default_models("cifar10", "eps1")) == 7
    assert default_models("digits", "eps2") == list(DIGITS_ARCHS)


def test_importing_the_models_loads_no_library():
    code = "import univ.models, sys; print(*{'torchvision', 'timm', 'robustness', 'pandas'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


# --- names of files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "held, arch, train_set, expected",
    [
        (["resnet18.ckpt", "resnet50.ckpt"], "resnet18", "imagenet", "resnet18.ckpt"),
        (["resnet18.pt"], "resnet18", "imagenet", "resnet18.pt"),
        (["resnet18.pt", "resnet18.ckpt"], "resnet18", "imagenet", "resnet18.ckpt"),
        (["resnet18.pt", "resnet18.ckpt"], "resnet18", "cifar10", "resnet18.pt"),
        (["resnet18_l2_eps3.ckpt", "resnet18_l2_eps0.ckpt"], "resnet18", "imagenet", "resnet18_l2_eps3.ckpt"),
        (["densenet_l2_eps3.ckpt"], "densenet161", "imagenet", "densenet_l2_eps3.ckpt"),
        (["wide_resnet50_2_l2_eps3.ckpt"], "wide_resnet50_2", "imagenet", "wide_resnet50_2_l2_eps3.ckpt"),
        (["timm_convnext_atto.pt"], "timm:convnext_atto", "imagenet", "timm_convnext_atto.pt"),
        (["convnext_atto.safetensors"], "timm:convnext_atto", "imagenet", "convnext_atto.safetensors"),
    ],
)
def test_a_checkpoint_is_found_under_the_names_in_use(tmp_path, held, arch, train_set, expected):
    folder = tmp_path / "eps3"
    folder.mkdir()
    for name in held:
        (folder / name).touch()
    assert find_checkpoint(folder, arch, train_set) == folder / expected


def test_hugging_face_names_follow_the_folders_radius(tmp_path):
    folder = tmp_path / "eps025"
    folder.mkdir()
    for eps in ("0", "0.25", "3"):
        (folder / f"resnet18_l2_eps{eps}.ckpt").touch()
    assert find_checkpoint(folder, "resnet18", "imagenet").name == "resnet18_l2_eps0.25.ckpt"
    folder = folder.rename(tmp_path / "mixed")
    with pytest.raises(InputError, match=r"several checkpoints of 'resnet18' in .*eps0\.25\.ckpt.*--model-dir"):
        find_checkpoint(folder, "resnet18", "imagenet")


def test_a_missing_checkpoint_names_the_folder_and_what_it_holds(tmp_path):
    (tmp_path / "resnet50.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}; it holds: resnet50\.ckpt \(see --model-dir\)"):
        find_checkpoint(tmp_path, "resnet18", "imagenet")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint resnet10\.pt in .*no such folder"):
        find_checkpoint(tmp_path / "nowhere", "resnet10", "digits")


@pytest.mark.parametrize(
    "path, arch",
    [
        ("data/cnns/imagenet/eps3/resnet18.ckpt", "resnet18"),
        ("wide_resnet50_2_l2_eps0.25.ckpt", "wide_resnet50_2"),
        ("densenet_l2_eps3.ckpt", "densenet161"),
        *(
            (f"{file_stem(arch)}.pt", arch)
            for arch in ("resnext14_4x32d", "timm:vit_tiny_patch16_224", "torchvision:a_b")
        ),
    ],
)
def test_a_file_name_tells_the_architecture(path, arch):
    assert arch_from_filename(path) == arch


def test_a_file_name_that_tells_none_is_refused():
    with pytest.raises(InputError, match=r"name of .*checkpoint\.pt\.best: give it with -m .*resnet18"):
        arch_from_filename("runs/checkpoint.pt.best")


@pytest.mark.slow
@pytest.mark.parametrize("train_set, arch", every_model(()))
def test_every_model_survives_saving_and_loading(tmp_path, train_set, arch):
    model = build_model(arch, train_set, seed=0).eval()
    shake(model)
    checkpoints.save_checkpoint(tmp_path / "model.pt", model, epoch=1)
    loaded = load_model(arch, train_set, tmp_path / "model.pt")
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_only_fp32_is_repeatable_and_exact_and_what_was_set_before_comes_back(precision):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    exact, product = precision == "fp32", torch.ones(2, 2)
    before = cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    with arithmetic(precision, torch.device("cpu")):
        assert (cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32) == (exact, not exact, not exact)
        assert (product @ product).dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert before == (cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32)
    assert (product @ product).dtype == torch.float32
