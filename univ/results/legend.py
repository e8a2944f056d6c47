"""README.md of a results folder: what its folders, names and tables mean, where a person meets them."""

import errno
import os
from pathlib import Path

from loguru import logger

from univ import files
from univ.errors import InputError
from univ.measures.cards import CARDS
from univ.results.layout import CKA_FOLDER, COMPANIONS, NEIGHBOR_FUNCTIONS, PARTS, PROBES_NAME, SUBGROUPS_NAME

NAME = "README.md"
TEXT = f"""# Results

    <measure>/<standard|inverted>/[<neighbours>/][{CKA_FOLDER}/]<data set>/[<models>/]<name>_[<parts>]<eps>_<exp>.csv

- **standard** scores were computed on regular images, **inverted** ones on images inverted through one of the models.
- **neighbours**: {" or ".join(NEIGHBOR_FUNCTIONS)}, how the measures on neighbours look for them.
- **{CKA_FOLDER}** stands in every path of CKA: it is the number of images of the published results, and no more than a
  part of the path. How many images a result has stands in the JSON beside it.
- **data set**: the images. **models**: what the models were trained on, where that is another data set (sat6).
- **eps**: the radius of the models' adversarial training in the L2 norm, eps025 is 0.25 and eps0 standard training.
- **exp**: the tag of the index file that chose the images, the flag -e. 10 and 10.0 are the same tag.
- **parts**: none, or some of these, in this order.

| part | means |
|---|---|
{{parts}}

## Measures

| flag | folder | files | larger is | figures show |
|---|---|---|---|---|
{{measures}}

A measure that is not in the table has a folder, and files, of its flag's name.

## Matrices

A row and a column per model. On regular images, and on pooled inverted ones (`sample_`), the matrix is symmetric unless
the measure is directional. On inverted images the **column** is the model whose images were used: row b of column a
compares a and b on the images inverted through a, and row a of column b is another comparison. The diagonal compares a
model with itself. A file with the only row 0 holds one number per model (mag, con), per source of inverted images
(amb, disc), or one for all models.

Beside a matrix there may be tables with a row per comparison; model1 is the source of inverted images:

{{companions}}

## How each result was made

The JSON of the same name beside a CSV: what decides the numbers (`settings`, with hashes of checkpoints and images),
the command line, the commit, versions, accuracies, and the CSV's own hash. A run takes a result as done for the same
settings only. A CSV without JSON, as published ones are, counts as done, with settings that nobody knows.

## Other files

- `subgroups/<data set>/{SUBGROUPS_NAME}` (subgroup_sim.py): similarity on the images on which two models predict the
  same and on the others, on `n` of the `n_group` images of each group. Column `made` names the entry of the JSON's
  `rows` that says how a row was made.
- `probing/{PROBES_NAME}` (compare_probes.py): share of images to which two probes give the same class.
- `accuracy.csv` and all in folders `accuracy` (--results-file of the training scripts): accuracy in percent on the test
  part, clean where attack_eps is 0; attack (pgd, apgd, autoattack) and norm say under which attack.
- `layers/<data set>/` (scripts/layers.py): scores of every layer with every other, a row per pair, and heat maps.
  Column `batch` says how many images were compared at a time.
- `nodes/<node>[_<pool>]/`: results at another node than the study's (--node, --pool), laid out as this folder.

This file was written with the first result. It is not written again as long as it is there.
"""


def text() -> str:
    """The legend, in Markdown."""
    sense = {True: "more alike", False: "less alike"}
    shown = [
        f"| {key} | {card.folder} | `{card.file}_...csv` | {sense[card.larger_is_closer] if card.pairs else '-'} "
        f"| {card.label or '-'} |"
        for key, card in CARDS.items()
    ]
    return TEXT.format(
        parts="\n".join(f"| `{part}` | {meaning} |" for part, meaning in PARTS.values()),
        measures="\n".join(shown),
        companions="\n".join(f"- `..._{name}.csv`: {meaning}" for name, meaning in COMPANIONS.items()),
    )


def write(root: Path | str) -> None:
    """Write the legend into a results folder that has none; a folder that may not be written stays without."""
    path = Path(root) / NAME
    if os.path.lexists(path):
        return
    try:
        files.write_text(path, text())
    except InputError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        logger.info("no legend of the results: {}", error)
