"""Channels-last weights for training: what tensor cores want on CUDA, 0.6 to 0.75 of a step's time on the CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional

AVX512_LANES = 16  # float32 values per register


class Strided1x1(nn.Conv2d):
    """A 1x1 convolution with a stride, as one of stride 1 over the pixels it reads.

    It replaces those with less than 16 input channels: in channels-last layout oneDNN (3.10, as in torch 2.11, on
    AVX-512) computes the gradient of their weights with a buffer that is too small where the images do not divide
    evenly among the threads, and the process dies. The library copies the same pixels, so this takes no longer.
    """

    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = self.stride
        read = images[:, :, ::rows, ::columns].contiguous(memory_format=torch.channels_last)
        return functional.conv2d(read, weight, bias)


def channels_last(network: nn.Module) -> None:
    """Put the weights into channels-last layout, in place, and make it safe to train there on any processor."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _overflows(module):
            module.__class__ = Strided1x1  # the layer stays the object it was: hooks, names and weights with it
    network.to(memory_format=torch.channels_last)


def _overflows(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (1, 1)
        and conv.stride != (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and conv.in_channels < AVX512_LANES
        and conv.weight.device.type == "cpu"
    )
