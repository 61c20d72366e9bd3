"""Downloads the model, and writes pairs of sentences for natural language inference at three sites, in `volumes/` beside this file.

The pairs are SICK's (Marelli et al., SemEval-2014 task 1, CC BY-NC-SA 3.0) if the folder of SICK_train.txt and SICK_test_annotated.txt is
given with `--data` or SICK_DATA. Otherwise this script makes simple ones about people and what they do: enough to see the run work, and
no measure of anything.
"""

import argparse
import csv
import os
import random
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ingredients.splitting import dirichlet_shares, split_rows
from ingredients.tables import Row, write_rows
from ingredients.volumes import fill_volumes

SITES = {"press-pairs": (0.5, "jsonl"), "photo-pairs": (0.3, "csv"), "video-pairs": (0.2, "parquet")}
"""By volume claim: the site's share of the pairs, and the format of its files."""
ALPHA = 1.0
SEED = 0
MADE = (900, 300)
"""Pairs for training and validation that are made without the data set."""

MODEL = "minilm"
_FILES = ("SICK_train.txt", "SICK_test_annotated.txt")
_WHO = ("A man", "A woman", "A child", "A dog", "A boy", "The nurse", "An old singer")
_DOES = ("is playing a guitar", "is running in a park", "is sleeping", "is cutting an onion", "is reading a book", "is riding a horse")
_WHERE = ("", " at night", " in the rain", " near a river")


def main() -> None:
    """Create what is missing in `volumes/`."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--data", type=Path, default=os.environ.get("SICK_DATA"), help=f"folder of {' and '.join(_FILES)}")
    folder = arguments.parse_args().data
    files = [folder / name for name in _FILES] if folder else []
    claims = {claim: partial(_write, claim=claim, folder_of_data=folder) for claim in SITES}
    volumes = fill_volumes(Path(__file__).resolve(), MODEL, claims, made_from=files)
    print(f"ready: {MODEL} and the pairs of {len(SITES)} sites in {volumes}")


def sick_pairs(file: Path) -> list[Row]:
    """The pairs of a file of SICK."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{"premise": row["sentence_A"], "hypothesis": row["sentence_B"], "label": row["entailment_judgment"]} for row in rows]


def made_pairs(count: int, seed: int) -> list[Row]:
    """Pairs that follow from how they are made: one sentence says less than another, the opposite, or something else."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    pairs = []
    for number in range(count):
        who, does, where = draw.choice(_WHO), draw.choice(_DOES), draw.choice(_WHERE)
        other = draw.choice([one for one in _DOES if one != does])
        verb = does.removeprefix("is ")
        label, hypothesis = (
            ("ENTAILMENT", f"{who} is {verb}"),
            ("CONTRADICTION", f"{who} is not {verb}"),
            ("NEUTRAL", f"{who} {other}"),
        )[number % 3]
        pairs.append({"premise": f"{who} {does}{where}", "hypothesis": hypothesis, "label": label})
    return pairs


def sites_rows(train: list[Row], test: list[Row]) -> dict[str, tuple[list[Row], list[Row]]]:
    """By volume claim: the training and validation rows of the site."""
    sizes = [size for size, _ in SITES.values()]
    shares = dirichlet_shares([row["label"] for row in train], sizes, alpha=ALPHA, seed=SEED)
    split = []
    for rows in (train, test):
        sites = split_rows([row["label"] for row in rows], shares, seed=SEED)
        split.append([[rows[at] for at in site] for site in sites])
    return {claim: (split[0][site], split[1][site]) for site, claim in enumerate(SITES)}


def _write(folder: Path, *, claim: str, folder_of_data: Path | None = None) -> None:
    made = [made_pairs(count, seed) for seed, count in enumerate(MADE)]
    subsets = [sick_pairs(folder_of_data / name) for name in _FILES] if folder_of_data else made
    train, validation = sites_rows(subsets[0], subsets[1])[claim]
    suffix = SITES[claim][1]
    write_rows(folder / f"train.{suffix}", train)
    write_rows(folder / f"validation.{suffix}", validation)
    print(f"  {claim}: {len(train)} pairs for training, {len(validation)} for validation ({suffix})")


if __name__ == "__main__":
    main()
