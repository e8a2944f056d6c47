"""Folding changes the layers of a network, not what it computes, and folds nothing that it must not."""

import pytest
import torch
from networks import every_model, shake
from torch import nn

from univ.models import DIGITS_ARCHS, HEAD_INPUT, Arch, Classifier, build_model
from univ.models.folding import fold_batchnorm
from univ.reps.nodes import Reader

QUICK = {("digits", arch) for arch in DIGITS_ARCHS}
QUICK |= {("imagenet", "resnet18"), ("cifar10", "resnet18"), ("cifar10", "vgg16")}
# Batch norms that follow no convolution: DenseNets have them before one, in blocks and transitions, and at the end.
UNFOLDED = {"densenet161": 78 + 3 + 1, "densenet17": 6 + 3 + 1}


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def outputs(model: Classifier, images: torch.Tensor):
    with Reader(model) as node, Reader(model, HEAD_INPUT) as head:
        logits = model(images)
        return logits, node.rep, head.rep


@pytest.mark.parametrize("train_set, arch", every_model(QUICK))
def test_folded_models_compute_the_same(train_set, arch):
    model = build_model(arch, train_set, seed=0)
    shake(model)
    folded = fold_batchnorm(model)
    assert model.training and not folded.training, "the original is left as it was"
    assert norms(folded) == UNFOLDED.get(arch, 0)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert folded.head.out_features == model.num_classes and folded.spec is model.spec

    model.eval()
    images = torch.rand(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for ours, expected in zip(outputs(folded, images), outputs(model, images), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_gradients_of_the_pixels_are_the_same():
    model = build_model("resnext14_4x32d", "digits", seed=0)
    shake(model)
    gradients = []
    for network in (model.eval(), fold_batchnorm(model)):
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        network(images).square().sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5 * gradients[0].abs().max().item())


def test_a_folded_model_stays_in_evaluation_mode():
    assert not fold_batchnorm(build_model("vgg11", "digits", seed=0)).train().training


@pytest.mark.parametrize("arch", ["vgg11", "densenet17"])
def test_update_takes_over_new_weights_and_statistics(arch):
    """What an attack on a network in training needs: the copy follows its original."""
    model = build_model(arch, "digits", seed=0)
    folded = fold_batchnorm(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(torch.rand(8, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    model.eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        assert not torch.allclose(folded(images), expected, rtol=1e-3)
        folded.update(model)
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-5)


def test_synchronised_batch_norms_are_folded_too():
    """As processes on several devices have them with --sync-bn; in evaluation mode they are ordinary ones."""
    model = build_model("resnext14_4x32d", "digits", seed=0)
    shake(model)
    plain = fold_batchnorm(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    folded = fold_batchnorm(model)
    assert folded.pairs == plain.pairs
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(folded(images), model.eval()(images), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.model.bn1.running_mean += 0.1
    folded.update(model)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """Convolutions whose batch norm must not be folded, for one reason each, and one that may be."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 1)  # runs twice
        self.shared_norm = nn.BatchNorm2d(3)
        self.read_twice = nn.Conv2d(3, 3, 1)  # the skip connection reads it too
        self.read_norm = nn.BatchNorm2d(3)
        self.changed = nn.Conv2d(3, 3, 1)  # an operation comes between
        self.changed_norm = nn.BatchNorm2d(3)
        self.no_statistics = nn.Conv2d(3, 3, 1)
        self.batch_norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.plain = nn.Conv2d(3, 4, 1)
        self.plain_norm = nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.shared_norm(self.shared(x))
        x = self.shared(x)
        skip = self.read_twice(x)
        x = self.read_norm(skip) + skip
        x = self.changed_norm(self.changed(x) * 2)
        x = self.batch_norm(self.no_statistics(x))
        return self.head(self.plain_norm(self.plain(x)).mean(dim=(2, 3)))


def test_only_what_directly_follows_a_convolution_is_folded():
    model = Classifier(Branches(10), Arch(Branches, head="head"), "branches", "digits", 10)
    for norm in ("shared_norm", "read_norm", "changed_norm", "plain_norm"):
        model.model.get_submodule(norm).running_mean.uniform_(-1, 1)
        model.model.get_submodule(norm).running_var.uniform_(0.5, 2)
    folded = fold_batchnorm(model)
    assert folded.pairs == (("plain", "plain_norm"),)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(folded(images), model.eval()(images), rtol=1e-4, atol=1e-5)
