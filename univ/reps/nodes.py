"""Where a network can be read, and reading it there: a network, names of nodes, images -> one tensor per node.

A node is a module, by its dotted name within the network, whose output is read; or "head", the input of the layer that
classifies. Hooks are gone when a reading is over, and the network goes on as if nobody looked.
"""

import argparse
import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from univ import files
from univ.attacks import frozen
from univ.errors import InputError
from univ.models import HEAD_INPUT, Classifier
from univ.models.architectures import find_head

POOLS = ("none", "mean", "cls", "flatten")
ALL = "all"
NODES_FOLDER = "nodes"  # holds what was read elsewhere than where the study reads
_USUAL_SIZE = 224  # side of the image that a network which says nothing of it is tried with, pixels
_NEAREST = 6  # names in an answer to one that is unknown


def add_arguments(group: argparse._ArgumentGroup, *, many: bool = False) -> None:
    """The flags --node, --pool and --list-nodes."""
    text = "read representations here: a module's dotted name, or head, the input of the layer that classifies"
    if many:
        text += "; a glob such as 'layer*' or 'blocks.*.mlp'; or all, every layer and block; may be repeated"
    text += f". What comes of it goes below {NODES_FOLDER}/<node>[_<pool>]/ of each output folder"
    many_of = {"nargs": "+", "action": "extend"} if many else {}
    group.add_argument("--node", metavar="NAME", help=f"{text}; without it, where the study reads", **many_of)
    text = (
        "what becomes of (N, C, H, W) or of tokens (N, T, D): none: it stays; mean: over space or tokens; cls: the "
        "first token; flatten: (N, D). Without it as the study does, and flatten for a --node"
    )
    group.add_argument("--pool", choices=POOLS, help=text)
    text = "print the models' layers and blocks with shape and size of one image's value, and stop"
    group.add_argument("--list-nodes", action="store_true", help=text)


def print_nodes(name: str, net: nn.Module) -> None:
    """What --list-nodes prints of a model."""
    print(name, describe(node_shapes(net)), sep="\n", end="\n\n")


def network_of(net: nn.Module) -> nn.Module:
    """The module within which nodes are named: of a `Classifier` the network behind its normalisation."""
    return net.model if isinstance(net, Classifier) else net


def node_label(node: str | None, pool: str | None, default: str) -> str:
    """What records say of a reading: the node, and the pooling where one was asked for, as in `layer4.0 (mean)`."""
    return (node or default) + (f" ({pool})" if pool else "")


def node_folder(root: Path, node: str | None, pool: str | None) -> Path:
    """Where below `root` belongs what was read at a node: `nodes/<node>` or `nodes/<node>_<pool>`.

    Without node and pooling, where the study reads, it is `root` itself: the layout below stays the published one.
    """
    if not (node or pool):
        return root
    name = "_".join(filter(None, (node or "default", pool)))
    return root / NODES_FOLDER / files.file_name(name, "--node")


# --- which nodes there are ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """The last call of a module in a forward pass."""

    name: str
    started: int  # when, counted over all calls
    shape: tuple[int, ...] | None  # of one image's output; None if it is not a tensor with a row per image
    input_shape: tuple[int, ...] | None
    layer: bool  # a layer with weights that mix, one that changes the shape, or a block of several


def list_nodes(net: nn.Module, image: Tensor | None = None) -> list[str]:
    """The layers and blocks of a network, in the order in which they are done with.

    Listed are layers with matrices of weights (convolutions, linear layers), layers that change the shape (pooling),
    and blocks: modules with parts of their own and more to do than to call them in turn. Of a block's last layer only
    the block itself is listed, as what follows within it is an addition, a normalisation or a nonlinearity. The node at
    which the study compares an architecture is listed in any case. Any other module can be read by its name all the
    same. ResNet-50 has 56 nodes, ViT-B/16 about 50.

    Args:
        net: a `Classifier`, or any network that takes (B, 3, H, W).
        image: (1, 3, H, W), one that the network takes; default: of its size, else 224 pixels a side.

    Raises:
        InputError: the network does not take such an image.
    """
    return list(node_shapes(net, image))


def node_shapes(net: nn.Module, image: Tensor | None = None) -> dict[str, tuple[int, ...]]:
    """The nodes of `list_nodes`, each with the shape of one image's value, (C, H, W) of a convolution."""
    default = net.spec.node if isinstance(net, Classifier) else None
    listed: list[_Call] = []
    calls = _trace(net, image)
    for call in calls:
        if call.shape is None or not (call.layer or call.name == default) or _holds_head(net, call.name):
            continue
        if listed and listed[-1].started > call.started and listed[-1].name != default:
            listed.pop()  # the last layer of this block
        listed.append(call)
    shapes = {call.name: call.shape for call in listed if call.name != HEAD_INPUT}
    if (head := _head_call(net, calls)) is not None and (default == HEAD_INPUT or head.name == HEAD_INPUT):
        # before the logits, if they have another name
        order = [name for name in shapes if name != head.name]
        shapes = (
            {name: shapes[name] for name in order}
            | {HEAD_INPUT: head.input_shape}
            | {name: shapes[name] for name in shapes if name == head.name}
        )
    return shapes


def find_nodes(net: nn.Module, patterns: Sequence[str], image: Tensor | None = None) -> list[str]:
    """The nodes that patterns name, each once.

    Args:
        net, image: as for `list_nodes`.
        patterns: dotted names of modules; "head"; "all" for `list_nodes`; or globs, in which `*` stands for a part of a
            name between two dots and `**` for any number of them: `layer*`, `blocks.*.mlp`, `**.conv1`.

    Raises:
        InputError: a pattern names no node (the message lists the nearest ones).
    """
    found: dict[str, None] = {}
    calls: list[str] | None = None
    for pattern in patterns:
        if pattern == ALL:
            found |= dict.fromkeys(list_nodes(net, image))
        elif is_pattern(pattern):
            if calls is None:
                calls = [call.name for call in _trace(net, image) if call.shape is not None and call.name]
            matching = [name for name in calls if _matches(name, pattern) and name != HEAD_INPUT]
            if not matching:
                raise _unknown(net, pattern)
            found |= dict.fromkeys(matching)
        else:
            _module(net, pattern)
            found[pattern] = None
    return list(found)


def is_pattern(text: str) -> bool:
    """Whether it may name several nodes."""
    return text == ALL or not set(text).isdisjoint("*?[")


def _matches(name: str, pattern: str) -> bool:
    """Whether a dotted name fits a glob."""
    parts = []
    for part in re.split(r"(\*\*)", pattern):
        parts.append(".*" if part == "**" else fnmatch.translate(part)[4:-3].replace(".*", "[^.]*"))
    return re.fullmatch("".join(parts), name) is not None


def _module(net: nn.Module, node: str) -> nn.Module | None:
    """The module of a node; None for the head of a network that does not say which that is."""
    if node == HEAD_INPUT:
        return net.head if isinstance(net, Classifier) else None
    try:
        if node:
            return network_of(net).get_submodule(node)
    except AttributeError:
        pass
    raise _unknown(net, node)


def _unknown(net: nn.Module, node: str) -> InputError:
    network = network_of(net)
    names = [HEAD_INPUT, *(name for name, _ in network.named_modules() if name)]
    near = difflib.get_close_matches(node, names, n=_NEAREST, cutoff=0.5)
    near += [name for name, _ in network.named_children() if name not in near][: _NEAREST - len(near)]
    arch = getattr(net, "arch", type(network).__name__)
    return InputError(f"{arch} has no node {node!r}; the nearest are {', '.join(near)} (--list-nodes lists them)")


def _holds_head(net: nn.Module, name: str) -> bool:
    """Whether a module is a block around the layer that classifies: its output are the logits."""
    return isinstance(net, Classifier) and net.spec.head.startswith(f"{name}.")


def _head_call(net: nn.Module, calls: Sequence[_Call]) -> _Call | None:
    wanted = net.spec.head if isinstance(net, Classifier) else HEAD_INPUT
    return next((call for call in calls if call.name == wanted and call.input_shape is not None), None)


def _trace(net: nn.Module, image: Tensor | None) -> list[_Call]:
    """The last call of every module of a network, in the order in which they return."""
    network = network_of(net)
    weight = next(network.parameters(), torch.empty(0))
    if image is None:
        size = (net.image_size if isinstance(net, Classifier) else None) or _USUAL_SIZE
        image = torch.full((1, 3, size, size), 0.5)
    images = image.to(weight).expand(2, *image.shape[1:])  # two: what has another length has no row per image
    calls: dict[str, _Call] = {}
    started: dict[str, int] = {}
    count = 0

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple) -> None:
            nonlocal count
            started[name], count = count, count + 1

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            calls.pop(name, None)
            value, given = _tensor(output), _tensor(inputs)
            shape, input_shape = (
                tuple(each.shape[1:]) if each is not None and each.ndim > 1 and len(each) == 2 else None
                for each in (value, given)
            )
            calls[name] = _Call(name, started[name], shape, input_shape, _is_layer(module, given, value))

        return hook

    hooks = []
    for name, module in network.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(enter(name)))
            hooks.append(module.register_forward_hook(leave(name)))
    try:
        with frozen(net), torch.no_grad():
            net(images)
    except (RuntimeError, TypeError, ValueError) as error:
        arch, why = getattr(net, "arch", type(network).__name__), str(error).splitlines()[0]
        raise InputError(f"{arch} does not take images {tuple(images.shape)} ({why}): give one it takes") from error
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.values())


def _tensor(values: object) -> Tensor | None:
    """A tensor, or the first of several."""
    while isinstance(values, tuple | list) and values:
        values = values[0]
    return values if isinstance(values, Tensor) else None


def _is_layer(module: nn.Module, given: Tensor | None, value: Tensor | None) -> bool:
    if next(module.children(), None) is not None:
        return type(module).forward is not nn.Sequential.forward
    if any(weight.ndim > 1 for weight in module.parameters(recurse=False)):
        return True
    if given is None or value is None:
        return False
    # in the same memory: reshaped or turned, but the same numbers
    return given.shape != value.shape and given.data_ptr() != value.data_ptr()


# --- reading --------------------------------------------------------------------------------------------------------


class Reader:
    """Read nodes while a network runs, in one forward pass.

    with Reader(model, ["layer1", "head"], "mean") as reader:
        values = reader(images)            # {"layer1": (B, 256), "head": (B, 2048)}, row i from image i
        reader.output                      # (B, classes)

    The network may also be run by other means within the block; `values` holds what its last pass gave, `rep` the value
    of the only node. A value is taken in the hook itself: DenseNet applies an in-place ReLU to the very tensor a hook
    sees, so a reference kept until later would hold other numbers on some devices. Gradients flow through. Of a module
    that is called several times the last call counts; of several outputs, the first.

    Args:
        net: a `Classifier`, or any network; names are those within `Classifier.model`, or within the network.
        nodes: one or more names; "head" is the input of the layer that classifies, which is what inversion optimises
            (post-ReLU; pooled, if that layer is a convolution). Default: where the study compares this architecture.
        pool: what becomes of an activation (B, C, H, W) or of tokens (B, T, D):
            "none": it keeps its shape;
            "flatten": (B, C H W), every number; the default of a node that is named;
            "mean": (B, C), the mean over space or over tokens;
            "cls": (B, D), the first token.
            Default: as the architecture's entry says of its own node, and "flatten".
        reduce: (node, value) -> what is kept of a value instead; called in the hook, on memory that may change after.

    Raises:
        InputError: the network has no such node (the message lists the nearest ones), none is named, or, when it runs,
            a node gives no tensor with a row per image, or what the pooling asks for is not there.
    """

    def __init__(
        self,
        net: nn.Module,
        nodes: str | Sequence[str] | None = None,
        pool: str | None = None,
        reduce: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        if pool not in (None, *POOLS):
            raise InputError(f"unknown pooling {pool!r}: choose from {', '.join(POOLS)}")
        spec = net.spec if isinstance(net, Classifier) else None
        if nodes is None:
            if spec is None:
                raise InputError(f"{type(net).__name__} names no node of its own: say which with node=")
            nodes = spec.node
        self.nodes = [nodes] if isinstance(nodes, str) else list(dict.fromkeys(nodes))
        self.values: dict[str, Tensor] = {}
        self.output: Tensor | None = None
        self._net, self._reduce = net, reduce
        self._pools = {
            node: "mean" if pool is None and spec is not None and spec.pool and node == spec.node else pool
            for node in self.nodes
        }
        self._modules: dict[str, nn.Module | None] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def rep(self) -> Tensor:
        """The value of the only node in the last forward pass."""
        (node,) = self.nodes
        if node not in self.values:
            raise RuntimeError(f"node {node!r} was not reached: run the model inside the block first")
        return self.values[node]

    def __enter__(self) -> Self:
        self._modules = {node: _module(self._net, node) for node in self.nodes}
        for node, module in self._modules.items():
            if module is not None:
                self._hook(node, module)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self.values, self.output = [], {}, None

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run the network on images (B, C, H, W), within the block; the values by node, in the order of `nodes`."""
        if None in self._modules.values():  # "head" of a network that does not say which layer that is
            self._hook_head(images.shape[-1])
        self.values = {}
        self.output = self._net(images)
        for node in self.nodes:
            if node not in self.values:
                raise InputError(f"node {node!r} is not reached when the network runs: read another (--list-nodes)")
        return {node: self.values[node] for node in self.nodes}

    def _hook_head(self, size: int) -> None:
        network, reduce = network_of(self._net), self._reduce
        self._reduce = lambda node, value: value  # the images that find the head are none to be read
        try:
            self._modules[HEAD_INPUT] = network.get_submodule(find_head(network, size))
        finally:
            self._reduce = reduce
        self._hook(HEAD_INPUT, self._modules[HEAD_INPUT])

    def _hook(self, node: str, module: nn.Module) -> None:
        if node == HEAD_INPUT:
            hook = module.register_forward_pre_hook(lambda head, inputs: self._keep_input(node, head, inputs[0]))
        else:
            hook = module.register_forward_hook(lambda module, _, output: self._keep_output(node, module, output))
        self._handles.append(hook)

    def _keep_output(self, node: str, module: nn.Module, output: object) -> None:
        activation = _tensor(output)
        if activation is None or activation.ndim < 2:
            raise InputError(f"node {node!r} gives no tensor with a row per image: read another (--list-nodes)")
        value = _pooled(activation, self._pools[node] or "flatten", node, module)
        # flattening gives the network's own memory, which it may change
        self._keep(node, value.clone() if value.data_ptr() == activation.data_ptr() and not self._reduce else value)

    def _keep_input(self, node: str, head: nn.Module, rep: Tensor) -> None:
        pool = self._pools[node] or ("mean" if isinstance(head, nn.Conv2d) else None)
        self._keep(node, rep if pool is None else _pooled(rep, pool, node, head))  # the head writes nothing into it

    def _keep(self, node: str, value: Tensor) -> None:
        self.values[node] = value if self._reduce is None else self._reduce(node, value)


def _pooled(activation: Tensor, pool: str, node: str, module: nn.Module) -> Tensor:
    if pool == "none" or (activation.ndim == 2 and pool != "cls"):
        return activation
    if pool == "flatten":
        return activation.flatten(1)
    if pool == "cls":
        if activation.ndim != 3:
            shape = ", ".join(map(str, activation.shape[1:]))
            raise InputError(f"--pool cls reads the first of a sequence of tokens; node {node!r} gives (N, {shape})")
        return activation[:, 0]
    if _channels_last(activation, module):
        return activation.flatten(1, -2).mean(dim=1)
    return activation.flatten(2).mean(dim=2)


def _channels_last(activation: Tensor, module: nn.Module) -> bool:
    """Whether the last dimension is that of the channels: of tokens (B, T, D), and of maps (B, H, W, C) as in Swin.

    Told by the width of the last layer within the module; where that leaves it open, tokens have it last, maps first.
    """
    first, last = activation.shape[1], activation.shape[-1]
    width = next(filter(None, map(_width, reversed(list(module.modules())))), None)
    if first == last or width not in (first, last):
        return activation.ndim == 3
    return width == last


def _width(module: nn.Module) -> int | None:
    """Channels of a layer's output, as far as it says."""
    for name in ("out_features", "out_channels", "num_features"):
        if isinstance(width := getattr(module, name, None), int) and next(module.children(), None) is None:
            return width
    shape = getattr(module, "normalized_shape", None)
    return shape[-1] if isinstance(shape, tuple) else None


def describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A table for people: node, shape of one image's value, how many numbers that is."""
    width = max(map(len, ("node", *shapes)))
    rows = [f"{'node':<{width}}  {'shape':<18} {'size':>10}"]
    for name, shape in shapes.items():
        rows.append(f"{name:<{width}}  {' x '.join(map(str, shape)):<18} {torch.Size(shape).numel():>10,}")
    return "\n".join(rows)
