"""The arithmetic networks compute in: a precision's name -> a context for their forward and backward passes."""

import contextlib
from collections.abc import Iterator

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "tf32", *AUTOCAST)


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Run the block's networks in a precision: fp32 without TF32 and repeatable, TF32, or autocast to bf16 or fp16."""
    matmul, cudnn, tf32 = torch.backends.cuda.matmul, torch.backends.cudnn, precision != "fp32"
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = tf32, tf32, not tf32
    autocast = precision in AUTOCAST
    try:
        with torch.autocast(device.type, dtype=AUTOCAST[precision]) if autocast else contextlib.nullcontext():
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before


@contextlib.contextmanager
def training_arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """What holds for a whole training, backward passes included, around the `arithmetic` of each forward pass.

    TF32, and cuDNN's fastest algorithms, found by trial; but for fp32, whose runs are to be repeatable.
    """
    cudnn, repeatable = torch.backends.cudnn, precision == "fp32"
    before, cudnn.benchmark = cudnn.benchmark, not repeatable
    try:
        with arithmetic("fp32" if repeatable else "tf32", device):
            yield
    finally:
        cudnn.benchmark = before
