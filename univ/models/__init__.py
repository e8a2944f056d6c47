"""Models: names and files -> classifiers that normalise their own input, in evaluation mode."""

from univ.models.architectures import ARCHS, DIGITS_ARCHS, archs_of, default_models, find_arch
from univ.models.classifier import Classifier, build_model, require_size
from univ.models.entry import HEAD_INPUT, Arch, seeded, split_seed
from univ.models.names import (
    MODELS_HELP,
    arch_from_filename,
    file_stem,
    find_checkpoint,
    read_hugging_face_name,
    source_name,
    source_names,
    source_text,
)
from univ.models.sources import Source, find_source, find_sources, load, load_model

__all__ = [
    "ARCHS",
    "DIGITS_ARCHS",
    "HEAD_INPUT",
    "MODELS_HELP",
    "Arch",
    "Classifier",
    "Source",
    "arch_from_filename",
    "archs_of",
    "build_model",
    "default_models",
    "file_stem",
    "find_arch",
    "find_checkpoint",
    "find_source",
    "find_sources",
    "load",
    "load_model",
    "read_hugging_face_name",
    "require_size",
    "seeded",
    "source_name",
    "source_names",
    "source_text",
    "split_seed",
]
