"""Models: (architecture, training set, checkpoint) -> classifier that normalises its own input, in evaluation mode."""

from univ.models.classifier import (
    ARCHS,
    CIFAR10_ARCHS,
    DIGITS_ARCHS,
    HEAD_INPUT,
    IMAGENET_ARCHS,
    Arch,
    Classifier,
    arch_from_filename,
    archs_of,
    build_model,
    default_models,
    file_stem,
    find_arch,
    find_checkpoint,
    load_model,
    read_hugging_face_name,
)

__all__ = [
    "ARCHS",
    "CIFAR10_ARCHS",
    "DIGITS_ARCHS",
    "HEAD_INPUT",
    "IMAGENET_ARCHS",
    "Arch",
    "Classifier",
    "arch_from_filename",
    "archs_of",
    "build_model",
    "default_models",
    "file_stem",
    "find_arch",
    "find_checkpoint",
    "load_model",
    "read_hugging_face_name",
]
