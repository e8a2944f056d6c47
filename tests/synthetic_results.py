"""Results of made-up scores in the real layout, written through `univ.results`: food for figures and notebooks."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from univ import files, results
from univ.data import open_images
from univ.eps import eps_value
from univ.results import ResultFile, made
from univ.show.sources import Sources

DIGITS_MODELS = ("vgg11", "resnet10", "densenet17", "resnext14_4x32d")
EPS = ("eps0", "eps1", "eps2")
CSV_OF_ACCURACIES = "model,dataset,acc,loss,trained_eps,attack_lr,attack_eps,timestamp\n"


def write_scores(
    root: Path,
    dataset: str = "digits",
    models: Sequence[str] = DIGITS_MODELS,
    eps: Sequence[str] = EPS,
    inputs: Sequence[str] = ("standard", "inverted"),
    *,
    ks: Sequence[int] = (10, 100, 500),
) -> None:
    """cka, proc, rtd, jacc (one tag per k), dis and jsd; more alike for larger eps, less alike on inverted images."""
    generator = np.random.default_rng(0)

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
        record = {"num_classes": 10, "accuracy": accuracy}
        results.write(root, ResultFile("dis", exp="10", **about), matrix(alike, 1, 0, not inverted), {}, record)
        results.write(root, ResultFile("jsd", exp="10", **about), matrix(alike, 0.69, 0, not inverted), {})


def write_subgroups(root: Path, dataset: str = "digits", models: Sequence[str] = DIGITS_MODELS) -> None:
    """`repsim_subgroups.csv`: alike where predictions agree, less so where they differ; one score is missing."""
    generator = np.random.default_rng(0)
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


def write_sources(root: Path, inverted: int = 6) -> Sources:
    """All of these, in results/ and data/ below a folder."""
    sources = Sources(root / "results", root / "data")
    for write in (write_scores, write_subgroups, write_probe_agreement):
        write(sources.results)
    write_inversions(sources.data / "digits" / "inverted", n=inverted)
    return sources


def matrix(values: list[list[float]], models: str = "abc") -> pd.DataFrame:
    """Scores of models called a, b, ..."""
    return pd.DataFrame(values, index=list(models), columns=list(models))


def sources_of_everything(root: Path) -> Sources:
    """Everything a folder can hold: two data sets, other kinds and preprocessings, unknown and damaged records."""
    sources = write_sources(root, inverted=4)
    found = sources.results
    write_scores(found, "sat6", models=("resnet18", "vgg16_bn"), eps=("eps0",), inputs=("standard",), ks=(10,))
    about = {"dataset": "digits", "models": "digits", "eps": "eps1", "exp": "10"}
    rep = about | {"center": True, "normalize": True}
    scores = matrix([[1, 0.25, math.nan], [0.25, 1, 0.75], [math.nan, 0.75, 1]])
    results.write(found, ResultFile("cka", **rep, adversarial=True), scores, {})
    results.write(found, ResultFile("cka", **rep | {"exp": "other"}), matrix([[1, 0.5], [0.5, 1]], "ab"), {})
    results.write(found, ResultFile("proc", **rep | {"center": False}), matrix([[0, 1], [1, 0]], "ab"), {})
    results.write(found, ResultFile("mag", **about, inverted=True), matrix([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), {})
    results.write(found, ResultFile("amb", **about), pd.DataFrame({"amb": [0.375]}), {})
    settings = {"measure": "norm", "inputs": {"a": {"n": 360}, "b": {"n": 360}}, "precision": "fp32"}
    record = {"arguments": {"func": ["norm"], "seed": 0, "data_path": None, "model_dir": "<models>"}}
    record |= {"commit": "0123456789abcdef", "versions": {"torch": "2.11.0"}}
    results.write(found, ResultFile("norm", **about), matrix([[0, 0.5], [0.5, 0]], "ab"), settings, record)
    results.write(found, ResultFile("kappa", **about), matrix([[1, 0.5], [0.5, 1]], "ab"), settings, record)
    damaged = results.write(found, ResultFile("churn", **about), matrix([[0, 0.5], [0.5, 0]], "ab"), {})
    damaged.write_text(damaged.read_text().replace("0.5", "0.6"))
    made.record_path(ResultFile("jsd", **about).path(found)).unlink()
    (found / "digits/accuracy").mkdir(parents=True)
    rows = "vgg11,digits,97.5,0.1,eps1,0,0,t\nvgg11,digits,91.25,0.3,eps1,0.5,1.0,t\nvgg11,digits,98.5,0.1,eps1,0,0,u\n"
    (found / "digits/accuracy/vgg11_eps1.csv").write_text(CSV_OF_ACCURACIES + rows)
    return sources
