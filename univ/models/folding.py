"""Batch normalisation folded into the convolutions before it: the same function, in evaluation mode, at less cost.

In evaluation mode batch norm is one multiplication and one addition per channel, which a convolution can do on the
way: w' = w * s, b' = (b - mean) * s + shift, with s = scale / sqrt(var + eps). What attacks and inversion run a
thousand times over then has a third fewer layers. The input normaliser stays: it clamps, and zero padding follows it.
"""

import itertools
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from univ.attacks import frozen
from univ.models.classifier import Classifier
from univ.models.layout import Strided1x1


class FoldedClassifier(Classifier):
    """A frozen copy of a classifier, always in evaluation mode, made by `fold_batchnorm`.

    Modules keep their names (a folded batch norm becomes an identity), so nodes and the head are where they were.
    """

    pairs: tuple[tuple[str, str], ...]  # names within `model`: convolution, batch norm folded into it

    def train(self, mode: bool = True) -> "FoldedClassifier":
        """Stay in evaluation mode: there are no batch statistics left to train with."""
        return super().train(False)

    @torch.no_grad()
    def update(self, source: Classifier) -> None:
        """Take over the present weights and running statistics of the classifier this one was made from.

        For attacks on a network that is being trained: one pass over its weights, in place.
        """
        own, theirs = dict(_tensors(self)), dict(_tensors(source))
        for conv, norm in self.pairs:
            weight, bias = own.pop(f"model.{conv}.weight"), own.pop(f"model.{conv}.bias")
            _fold(source.model.get_submodule(conv), source.model.get_submodule(norm), weight, bias)
        for name, tensor in own.items():
            tensor.copy_(theirs[name])
        self.model.train().eval()  # networks drop in train() what they cached in evaluation mode (tiny_vit)


def fold_batchnorm(classifier: Classifier, *, read: str = "") -> FoldedClassifier:
    """A frozen copy in evaluation mode with every batch norm folded that directly follows a convolution.

    Which ones do is found by running one image: a batch norm is folded if its input is the output of a convolution
    that nothing else reads, and both run once. Others stay as they are: those of DenseNets that come before their
    convolution with a ReLU between, and layers of derived classes, which may do more than their names say.

    Args:
        read: a module within `classifier.model` whose output is read and stays what it is: no batch norm after it is
            folded into a convolution at its end.

    Logits and representations agree with the original's to float32 rounding; the original is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        network = classifier.spec.build(classifier.num_classes)  # not a deep copy: no hooks, caches or graphs
    folded = FoldedClassifier(network, classifier.spec, classifier.arch, classifier.train_set, classifier.num_classes)
    folded.pairs = tuple(
        (conv, norm)
        for conv, norm in _find_pairs(classifier)
        if not (f"{conv}.".startswith(f"{read}.") and not f"{norm}.".startswith(f"{read}."))
    )
    for conv_name, norm_name in folded.pairs:
        conv = network.get_submodule(conv_name)
        if conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
        network.set_submodule(norm_name, nn.Identity())
    first = next(classifier.model.parameters())
    folded.to(device=first.device, dtype=first.dtype).update(classifier)
    return folded.eval().requires_grad_(False)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all weights and buffers, those that are not saved included."""
    return itertools.chain(model.named_parameters(), model.named_buffers())


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, weight: Tensor, bias: Tensor) -> None:
    """Write weight and bias of the convolution that does both; the per-channel arithmetic in float64.

    The weights are written in place: a network's are tens of megabytes, and this is done in every training step.
    """
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    bias.copy_(shift * factor + (norm.bias.double() if norm.affine else 0))
    torch.mul(conv.weight, factor.to(conv.weight.dtype)[:, None, None, None], out=weight)


class _Readers(TorchDispatchMode):
    """Counts, for every tensor made while it is active, how many operations read it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.made: list[Tensor] = []  # kept alive, so that ids stay unique

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts.update(id(value) for value in tree_iter((args, kwargs)) if isinstance(value, Tensor))
        result = func(*args, **(kwargs or {}))
        self.made += [value for value in tree_iter(result) if isinstance(value, Tensor)]
        return result


def _find_pairs(classifier: Classifier) -> tuple[tuple[str, str], ...]:
    outputs: list[tuple[str, int]] = []  # of every call of a convolution: its name, id of the output
    inputs: list[tuple[str, int]] = []  # of every call of a batch norm: its name, id of the input
    hooks = []
    for name, module in classifier.model.named_modules():
        if type(module) in (nn.Conv2d, Strided1x1):
            hooks.append(
                module.register_forward_hook(lambda _, __, output, name=name: outputs.append((name, id(output))))
            )
        elif type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) and module.track_running_stats:
            hooks.append(
                module.register_forward_pre_hook(lambda _, args, name=name: inputs.append((name, id(args[0]))))
            )
    parameter = next(classifier.model.parameters())
    image = parameter.new_zeros(1, 3, classifier.image_size, classifier.image_size)
    readers = _Readers()
    try:
        with frozen(classifier), torch.no_grad(), readers:
            classifier(image)
    finally:
        for hook in hooks:
            hook.remove()
    calls = Counter(name for name, _ in (*outputs, *inputs))
    conv_of = {output: conv for conv, output in outputs}
    directly = [(conv_of[tensor], norm) for norm, tensor in inputs if readers.counts[tensor] == 1 and tensor in conv_of]
    return tuple((conv, norm) for conv, norm in directly if calls[conv] == calls[norm] == 1)
