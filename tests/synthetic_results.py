"""Results of made-up scores in the real layout, written through `univ.results`: food for figures and notebooks."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from univ import files, results
from univ.data import open_images
from univ.eps import eps_value
from univ.results import ResultFile, made
from univ.show.study import Study

DIGITS_MODELS = ("vgg11", "resnet10", "densenet17", "resnext14_4x32d")
EPS = ("eps0", "eps1", "eps2")


def write_scores(
    root: Path,
    dataset: str = "digits",
    models: Sequence[str] = DIGITS_MODELS,
    eps: Sequence[str] = EPS,
    inputs: Sequence[str] = ("standard", "inverted"),
    *,
    ks: Sequence[int] = (10, 100, 500),
    num_classes: int = 10,
    seed: int = 0,
) -> None:
    """cka, proc, rtd, jacc (one tag per k), dis and jsd; more alike for larger eps, less alike on inverted images."""
    generator = np.random.default_rng(seed)

    def matrix(alike: float, top: float, self_score: float, symmetric: bool) -> pd.DataFrame:
        """Scores between self_score (alike = 1) and top (alike = 0)."""
        noise = generator.uniform(-0.05, 0.05, (len(models), len(models)))
        values = self_score + (top - self_score) * np.clip(1 - alike + noise, 0, 1)
        values = (values + values.T) / 2 if symmetric else values
        np.fill_diagonal(values, self_score)
        return pd.DataFrame(values, index=list(models), columns=list(models))

    for kind, name in itertools.product(inputs, eps):
        inverted = kind == "inverted"
        alike = (0.2 if inverted else 0.6) + 0.12 * eps_value(name)
        about = {"dataset": dataset, "models": dataset, "eps": name, "inverted": inverted}
        rep = about | {"center": True, "normalize": True}
        for measure, top, self_score in (("cka", 0, 1), ("proc", 2, 0), ("rtd", 30, 0)):
            results.write(root, ResultFile(measure, exp="10", **rep), matrix(alike, top, self_score, not inverted), {})
        for k in ks:
            file = ResultFile("jacc", exp=str(k), **rep)
            results.write(root, file, matrix(alike * (k / 500) ** 0.1, 0, 1, not inverted), {"knn": k})
        of_model = {model: float(generator.uniform(0.8, 0.95) - 0.03 * eps_value(name)) for model in models}
        accuracy = {source: of_model for source in models} if inverted else of_model
        record = {"num_classes": num_classes, "accuracy": accuracy}
        results.write(root, ResultFile("dis", exp="10", **about), matrix(alike, 1, 0, not inverted), {}, record)
        results.write(root, ResultFile("jsd", exp="10", **about), matrix(alike, 0.69, 0, not inverted), {})


def write_subgroups(root: Path, dataset: str = "digits", models: Sequence[str] = DIGITS_MODELS, seed: int = 0) -> None:
    """`repsim_subgroups.csv`: alike where predictions agree, less so where they differ; one score is missing."""
    generator = np.random.default_rng(seed)
    rows = []
    for metric, k, eps, (first, second), group in itertools.product(
        ("cka", "proc", "rtd", "jacc"), (10, 50), EPS[::2], itertools.combinations(models, 2), ("agree", "disagree")
    ):
        if metric != "jacc" and k != 10:
            continue
        score = generator.uniform(0.1, 0.2) + (0.5 if group == "agree" else 0.0) * (metric in ("cka", "jacc"))
        row = {"metric": metric, "score": score, "model1": first, "model2": second, "perc_k": None, "eps": eps}
        rows.append(row | {"k": k if metric == "jacc" else None, "pred_type": group})
    rows[0]["score"] = None
    path = root / "subgroups" / dataset / "standard" / results.SUBGROUPS_NAME
    table = pd.DataFrame(rows)[results.SUBGROUP_COLUMNS]
    made.write_csv(path, table.to_csv(index=False), {"dataset": dataset})


def write_probe_agreement(
    root: Path, dataset: str = "digits", models: Sequence[str] = DIGITS_MODELS, eps: str = EPS[-1]
) -> None:
    """`probe_agreement.csv` of two probes per model."""
    about = {
        f"{dataset}/{model}_{eps}/t/{i}": {"arch": model, "eps": eps, "dataset": dataset}
        for model in models
        for i in (0, 1)
    }
    pairs = list(itertools.combinations(about, 2))
    agreement = np.random.default_rng(0).uniform(0.9, 0.99, len(pairs))
    table = pd.DataFrame([(*pair, share) for pair, share in zip(pairs, agreement)], columns=results.PROBE_COLUMNS)
    path = root / "probing" / results.PROBES_NAME
    made.write_csv(path, table.to_csv(index=False), {}, {"probes": about})


def write_inversions(
    folder: Path, models: Sequence[str] = DIGITS_MODELS, eps: Sequence[str] = EPS, n: int = 12
) -> None:
    """Inverted digits, `<model>_<eps>.pt` and the CSV beside it: mixtures of seed and target."""
    images = open_images("digits")
    targets, seeds = torch.arange(n), torch.arange(n).flip(0) + 100
    for model, name in itertools.product(models, eps):
        share = 0.2 + 0.35 * eps_value(name)
        mixed = [share * images[int(t)][0] + (1 - share) * images[int(s)][0] for t, s in zip(targets, seeds)]
        files.save_torch(folder / f"{model}_{name}.pt", torch.stack(mixed).clamp(0, 1))
        table = pd.DataFrame({"target_index": targets, "seed_index": seeds})
        table.to_csv(folder / f"{model}_{name}.csv", index=False)


def write_study(root: Path, inverted: int = 6) -> Study:
    """All of these, in results/ and data/ below a folder."""
    study = Study(root / "results", root / "data")
    for write in (write_scores, write_subgroups, write_probe_agreement):
        write(study.results)
    write_inversions(study.data / "digits" / "inverted", n=inverted)
    return study
