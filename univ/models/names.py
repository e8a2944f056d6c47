"""What a model is called: sources as they are typed <-> names in tables <-> names of files, ours and published ones."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from univ import cli, files
from univ.data import find_dataset
from univ.eps import eps_of_path, eps_value
from univ.errors import InputError
from univ.models.architectures import ARCHS
from univ.models.entry import split_seed
from univ.models.libraries import LIBRARIES

_HUGGING_FACE = re.compile(r"(?P<arch>\w+?)_l2_eps(?P<eps>\d+(\.\d+)?)")  # e.g. resnet18_l2_eps0.25.ckpt
HUGGING_FACE_ARCHS = {"densenet": "densenet161"}  # what is called otherwise there
_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".pth.tar", ".bin")
_FILE = re.compile(rf"(?P<stem>.*?)({'|'.join(map(re.escape, _SUFFIXES))})(\.best|\.latest)?")
MODELS_HELP = (
    "a name of the study, with @N for training seed N; FILE or ARCH=FILE (.ckpt .pt .pth .safetensors); timm:NAME, "
    "torchvision:NAME[.WEIGHTS], hub:USER/REPO, robustbench:NAME: --model-dir's checkpoint, else published weights; "
    "module:FILE.py:FUNCTION runs your own code"
)
"""For the --help of every flag that takes sources."""


def parse_source(text: str) -> tuple[str | None, Path | None]:
    """The architecture and the file that a source names: `resnet50`, `a/resnet50.ckpt`, `timm:resnet50=weights.pth`.

    Raises:
        InputError: it names neither.
    """
    arch, equals, path = text.partition("=")
    is_file = arch.partition(":")[0] not in LIBRARIES and ("/" in arch or _FILE.fullmatch(text if not equals else arch))
    if is_file:
        return None, Path(text)
    if not arch or (equals and not path):
        raise InputError(f"{text!r} is no model: expected a name, FILE, or ARCH=FILE")
    return arch, Path(path) if equals else None


def source_text(text: str) -> str:
    """A source on the command line, its file being there; for argparse."""
    try:
        _, path = parse_source(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if path is not None:
        cli.existing_file(str(path))
    return text


def source_name(source: str | Path) -> str:
    """What a model is called in tables: its architecture, or, if only a file is named, what that file's name says.

    `timm:resnet18.a1_in1k` as it is, `eps3/resnet50@1.ckpt` is resnet50@1, `nets/mine.pth` is mine, `hub:user/repo`
    is hub:user_repo, `module:nets.py:small` is nets.small. `file_stem` makes a file's name of it.
    """
    arch, path = parse_source(str(source))
    if arch is None:
        try:
            return arch_from_filename(path)
        except InputError:
            return checkpoint_stem(path)
    kind, _, rest = arch.partition(":")
    if kind == "module":
        file, _, function = rest.rpartition(":")
        return f"{Path(file).stem}.{function}"
    return arch.replace("/", "_")


def checkpoint_stem(path: Path | str) -> str:
    """The name of a checkpoint file without its suffix: `a/best.pth.tar` is best."""
    found = _FILE.fullmatch(name := Path(path).name)
    return found["stem"] if found and found["stem"] else name


def source_names(sources: Iterable[str | Path]) -> dict[str, str]:
    """Name of each source -> source; files that would be called alike are told apart by what differs in their paths.

    >>> source_names(["resnet18", "a/eps0/resnet50.ckpt", "a/eps3/resnet50.ckpt"])
    {'resnet18': 'resnet18', 'eps0_resnet50': 'a/eps0/resnet50.ckpt', 'eps3_resnet50': 'a/eps3/resnet50.ckpt'}

    Raises:
        InputError: two that are no files are called alike.
    """
    texts = list(dict.fromkeys(map(str, sources)))
    called: dict[str, list[str]] = {}
    for text in texts:
        called.setdefault(source_name(text), []).append(text)
    names = {}
    for name, alike in called.items():
        if len(alike) == 1:
            names[alike[0]] = name
            continue
        paths = {text: path for text in alike if (path := parse_source(text)[1]) is not None}
        rest = [text for text in alike if text not in paths]
        if len(rest) > 1:
            raise InputError(f"these models would all be called {name}: {', '.join(rest)}; compare them apart")
        parts = {text: (*path.absolute().parts[1:-1], checkpoint_stem(path)) for text, path in paths.items()}
        depths = range(1, max(map(len, parts.values())) + 1)
        enough = (k for k in depths if len({*(p[-k:] for p in parts.values()), (name,)} - {()}) == len(parts) + 1)
        fallback = (k for k in depths if len({p[-k:] for p in parts.values()}) == len(parts))
        depth = next(enough, None) or next(fallback, None)
        if depth is None:
            raise InputError(f"{' and '.join(alike)} are one file: name it once")
        names |= {text: name for text in rest} | {text: "_".join(p[-depth:]) for text, p in parts.items()}
    return {names[text]: text for text in texts}


def file_stem(name: str) -> str:
    """A model's name as part of a file name: `timm:convnext_tiny` becomes `timm_convnext_tiny`.

    Raises:
        InputError: it cannot be one, see `files.file_name`.
    """
    return files.file_name(name.replace(":", "_"), "architecture")


def held_checkpoint(folder: Path | str, arch: str, train_set: str | None) -> Path | None:
    """The checkpoint of an architecture in a folder: `<arch>.ckpt`, `<arch>.pt` or a Hugging Face name; None: none.

    Files named as on Hugging Face (`resnet18_l2_eps3.ckpt`, `densenet_l2_eps3.ckpt`) count where the radius in their
    name is the one of the folder, or where the folder's path names none and there is only one.

    Raises:
        InputError: several files could be meant; names them.
    """
    folder, stems = Path(folder), [file_stem(source_name(arch))]
    if not arch.startswith(("module:", "hub:")):  # timm:resnet18 may be resnet18.ckpt; a user's function is not
        stems.append(arch.rpartition(":")[2])
    held = _held(folder)
    usual = _usual_suffix(train_set)
    for suffix in sorted(_SUFFIXES, key=lambda suffix: suffix != usual):
        for stem in stems:
            if stem + suffix in held:
                return folder / (stem + suffix)
    eps = eps_of_path(folder)
    radius = None if eps is None else eps_value(eps)
    published = {name: read_hugging_face_name(name) for name in held}
    matches = [name for name, model in published.items() if model and model[0] == arch and radius in (None, model[1])]
    if len(matches) > 1:
        several = ", ".join(matches)
        raise InputError(f"several checkpoints of {arch!r} in {folder}: {several}; keep one there (--model-dir)")
    return folder / matches[0] if matches else None


def find_checkpoint(folder: Path | str, arch: str, train_set: str | None) -> Path:
    """`held_checkpoint`, which must be there.

    Raises:
        FileNotFoundError: there is none; names the folder and what it holds.
        InputError: several files could be meant; names them.
    """
    if (path := held_checkpoint(folder, arch, train_set)) is not None:
        return path
    held = _held(Path(folder))
    listed = ", ".join(held[:20]) + (" …" if len(held) > 20 else "") if Path(folder).is_dir() else "no such folder"
    wanted = file_stem(source_name(arch)) + _usual_suffix(train_set)
    raise FileNotFoundError(f"no checkpoint {wanted} in {folder}; it holds: {listed or 'nothing'} (see --model-dir)")


def _held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _usual_suffix(train_set: str | None) -> str:
    return _SUFFIXES[0] if train_set is None else find_dataset(train_set).suffix


def arch_from_filename(path: Path | str) -> str:
    """The architecture a checkpoint's file name stands for: `…/eps3/resnet18.ckpt` is resnet18, with its @seed if any.

    Raises:
        InputError: the name is none of an architecture's.
    """
    stem = checkpoint_stem(path)
    known = {arch for archs in ARCHS.values() for arch in archs}
    arch, _ = read_hugging_face_name(path) or (stem, None)
    if split_seed(arch)[0] in known:
        return arch
    library, _, model = stem.partition("_")
    if library in ("timm", "torchvision") and model:
        return f"{library}:{model}"
    raise InputError(
        f"cannot tell the architecture from the name of {path}: give it with -m ({', '.join(sorted(known))})"
    )


def read_hugging_face_name(name: Path | str) -> tuple[str, float] | None:
    """Architecture, as we call it, and radius of a file named as on Hugging Face; None for other names."""
    match = _HUGGING_FACE.fullmatch(Path(name).stem)
    return match and (HUGGING_FACE_ARCHS.get(match["arch"], match["arch"]), float(match["eps"]))
