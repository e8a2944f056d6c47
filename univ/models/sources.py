"""Where models come from: names of architectures <-> names of checkpoint files, ours and the published ones."""

import re
from pathlib import Path

from univ import files
from univ.data import find_dataset
from univ.eps import eps_of_path, eps_value
from univ.errors import InputError
from univ.models.architectures import ARCHS

_HUGGING_FACE = re.compile(r"(?P<arch>\w+?)_l2_eps(?P<eps>\d+(\.\d+)?)")  # e.g. resnet18_l2_eps0.25.ckpt
HUGGING_FACE_ARCHS = {"densenet": "densenet161"}  # what is called otherwise there
_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")


def file_stem(arch: str) -> str:
    """An architecture's name as part of a file name: `timm:convnext_tiny` becomes `timm_convnext_tiny`.

    Raises:
        InputError: it cannot be one, see `files.file_name`.
    """
    return files.file_name(arch.replace(":", "_"), "architecture")


def find_checkpoint(folder: Path | str, arch: str, train_set: str) -> Path:
    """The checkpoint of an architecture in a folder: `<arch>.ckpt`, `<arch>.pt` or a Hugging Face name.

    Files named as on Hugging Face (`resnet18_l2_eps3.ckpt`, `densenet_l2_eps3.ckpt`) count where the radius in their
    name is the one of the folder, or where the folder's path names none and there is only one.

    Raises:
        FileNotFoundError: there is none; names the folder and what it holds.
        InputError: several files could be meant; names them.
    """
    folder, stem = Path(folder), file_stem(arch)
    held = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    usual = find_dataset(train_set).suffix
    for suffix in sorted(_SUFFIXES, key=lambda suffix: suffix != usual):
        for name in (stem + suffix, arch.rpartition(":")[2] + suffix):
            if name in held:
                return folder / name
    eps = eps_of_path(folder)
    radius = None if eps is None else eps_value(eps)
    published = {name: read_hugging_face_name(name) for name in held}
    matches = [name for name, model in published.items() if model and model[0] == arch and radius in (None, model[1])]
    if len(matches) == 1:
        return folder / matches[0]
    if matches:
        several = ", ".join(matches)
        raise InputError(f"several checkpoints of {arch!r} in {folder}: {several}; keep one there (--model-dir)")
    listed = ", ".join(held[:20]) + (" …" if len(held) > 20 else "") if folder.is_dir() else "no such folder"
    raise FileNotFoundError(
        f"no checkpoint {stem}{usual} in {folder}; it holds: {listed or 'nothing'} (see --model-dir)"
    )


def arch_from_filename(path: Path | str) -> str:
    """The architecture a checkpoint's file name stands for: `…/eps3/resnet18.ckpt` is resnet18.

    Raises:
        InputError: the name is none of an architecture's.
    """
    stem = Path(path).stem
    known = {arch for archs in ARCHS.values() for arch in archs}
    arch, _ = read_hugging_face_name(path) or (stem, None)
    if arch in known:
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
