"""Score models by functional similarity: how alike their predictions are on standard, inverted or adversarial images.

    python func.py -d imagenet100 -m imagenet100 -o eps3 -f all
    python func.py -d imagenet100 -m imagenet100 -o eps3 -f dis jsd -i 1
    python func.py --logits A.npz B.npz -f dis jsd --dataset-name sentences
    python func.py -d cifar10 -m cifar10 -o eps1 -f dis --model-names resnet18 vgg16

Writes one CSV per measure below results/, each with a JSON of all settings and the models' accuracies beside it; a CSV
that was made with the same settings is kept. On inverted images the column names the model whose images were used.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from univ import cli
from univ.compare import given, inputs, run
from univ.measures import CARDS, Outputs
from univ.models.precision import PRECISIONS
from univ.reps.extract import Extraction


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    group = parser.add_argument_group("measures")
    add = group.add_argument
    names = [key for key, card in CARDS.items() if card.of == "outputs"] + ["all", "more"]
    text = f"{', '.join(names)}. all: the original's list; more: {' '.join(run.select(['more'], 'outputs'))}"
    add("-f", "--func", nargs="+", choices=names, default=["all"], metavar="MEASURE", help=text)
    add("-a", "--alpha", type=cli.positive_number, default=1.0, help="exponent of the surrogate churn")
    run.add_permutations(group)
    inputs.add_arguments(parser)
    given.add_arguments(parser, "logits")
    cli.add_common_arguments(parser, precisions=PRECISIONS)
    args = parser.parse_args(argv)
    inputs.check_arguments(parser, args)
    given.check_arguments(parser, args, argv, "logits")
    args.measures = run.select(args.func, "outputs")
    return args


def accuracies(extractions: Mapping[str, Extraction], labels: Tensor) -> dict[str, Any]:
    """Number of classes, and each model's accuracy where the labels are known: figures draw the bounds from these."""
    classes = next(iter(extractions.values())).logits.shape[1]
    if (labels < 0).any():
        return {"num_classes": classes}
    shares = {name: (found.preds == labels).double().mean().item() for name, found in extractions.items()}
    return {"num_classes": classes, "accuracy": shares}


def as_outputs(extraction: Extraction, labels: Tensor) -> Outputs:
    """Logits, and labels where they are known."""
    return Outputs(extraction.logits, None if (labels < 0).any() else labels)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    models, image_sets = given.start(args, "logits") if args.logits else inputs.start(args)
    if args.no_comparisons:
        run.fill_cache(models, image_sets)
    elif run.run_measures(args, models, image_sets, {"alpha": args.alpha}, as_outputs, facts_on=accuracies):
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run(main)
