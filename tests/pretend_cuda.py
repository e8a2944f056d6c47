"""Tensors that say they are on cuda:0 and compute on the CPU, for tests of device handling without a GPU.

In: `Pretend(tensor)`; out: a tensor whose operations raise where CUDA's would: mixed devices, `.numpy()`. Unlike
FakeTensor's, its values are real, so that control flow that depends on them (checks for NaN, `.item()`) goes on.
"""

import torch
from torch.utils import _pytree as pytree

CUDA = torch.device("cuda:0")
aten = torch.ops.aten
TAKE_CPU_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does: without a driver the guard does nothing
COMPOSED = {torch.where, torch.quantile}  # make a tensor of a number on the device, below what a mode sees
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.mv, aten.addmv, aten.baddbmm}


class Pretend(torch.Tensor):
    """A tensor on `cuda:0` whose values are those of `real`, on the CPU."""

    @staticmethod
    def __new__(cls, real):
        return torch.Tensor._make_wrapper_subclass(  # on the CPU, as CUDA's guards want a driver: only `device` tells
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            dispatch_device=True,
        )  # fmt: skip

    def __init__(self, real):
        self.held = real

    def __repr__(self):
        return f"Pretend({self.held})"

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return CUDA
        if func is not aten.copy_.default and not (func in TAKE_CPU_INDICES and isinstance(args[0], Pretend)):
            check_devices(func, (args, kwargs))
        if func.overloadpacket in PRODUCTS and args[0].dtype == torch.float32:
            assert torch.backends.cuda.matmul.fp32_precision == "ieee", "a float32 product would run in TF32"
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else CUDA
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        real_args, real_kwargs = pytree.tree_map_only(Pretend, lambda tensor: tensor.held, (args, kwargs))
        found = func(*real_args, **real_kwargs)
        if func._schema.is_mutable and isinstance(args[0], Pretend):
            return args[0]
        return pytree.tree_map_only(torch.Tensor, Pretend, found) if device.type == "cuda" else found


class PretendCuda(torch.overrides.TorchFunctionMode):
    """While it is on, tensors made on or moved to a CUDA device are pretended ones; CUDA itself is never called."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, args = dict(kwargs or {}), list(args)
        if func in (torch.Tensor.to, torch.Tensor.cuda):
            if func is torch.Tensor.cuda:
                func, args = torch.Tensor.to, [args[0], CUDA]
            targets = [getattr(value, "device", value) for value in args[1:]]  # of x.to(y): y's device and dtype
            args[1:] = [value.dtype if isinstance(value, torch.Tensor) else value for value in args[1:]]
            here = [position for position, target in enumerate(targets, 1) if is_cuda(target)]
            if here and isinstance(args[0], Pretend):
                args = [value for position, value in enumerate(args) if not is_cuda(value)]
                return func(*args, **kwargs) if len(args) > 1 or kwargs else args[0]
            if here:
                args = [torch.device("cpu") if is_cuda(value) else value for value in args]
                return Pretend(func(*args, **kwargs))
        elif func in COMPOSED and any(isinstance(value, Pretend) for value in args):
            check_devices(func, args)
            return Pretend(func(*(value.held if isinstance(value, Pretend) else value for value in args), **kwargs))
        elif is_cuda(kwargs.get("device")):
            return Pretend(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def check_devices(func, arguments):
    """Raise, as CUDA would, where tensors that are not single numbers are on the CPU, too."""
    for leaf in pytree.tree_leaves(arguments):
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Pretend) and leaf.ndim:
            raise RuntimeError(f"{func}: expected all tensors on the same device, found cuda:0 and cpu")


def is_cuda(value):
    return isinstance(value, str | torch.device) and torch.device(value).type == "cuda"
