"""Input normalisation as the first layer of a model: pixels in [0, 1] in, what the network was trained on out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class InputNormalize(nn.Module):
    """Clamp images to [0, 1], subtract the channel mean, divide by the channel standard deviation.

    Being part of the model, it lets attacks and inversion work in pixel units. The clamp and the names of the two
    buffers, each (3, 1, 1), are those of the published checkpoints (robustness.tools.helpers.InputNormalize).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("new_mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("new_std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, 3, H, W)
        return (images.clamp(0, 1) - self.new_mean) / self.new_std
