"""Models: names and files -> classifiers that normalise their own input, in evaluation mode."""

from univ.models.architectures import ARCHS, DIGITS_ARCHS, HEAD_INPUT, Arch, archs_of, default_models, find_arch
from univ.models.classifier import Classifier, build_model, load_model
from univ.models.sources import arch_from_filename, file_stem, find_checkpoint, read_hugging_face_name

__all__ = [
    "ARCHS",
    "DIGITS_ARCHS",
    "HEAD_INPUT",
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
