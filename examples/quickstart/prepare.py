"""Downloads the model and the data of the quick start, and splits 20 Newsgroups among its three sites, in `volumes/` beside this file.

Run again, it does nothing. The training documents of each group are split in uneven shares, and the test documents in the same
shares. So each site is evaluated on its own mix of groups, and the three validation sets together are the balanced test sample:
every document once, and the same number of documents for every group.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ingredients.models import MAKERS
from ingredients.newsgroups import newsgroups
from ingredients.packages import cache_folder
from ingredients.splitting import balanced_sample, dirichlet_shares, split_rows
from ingredients.tables import Row, write_rows
from ingredients.volumes import fill_volumes

SITES = {"campus-news": (0.5, "jsonl"), "office-news": (0.3, "csv"), "cabin-news": (0.2, "parquet")}
"""By volume claim: the site's share of the documents, and the format of its files."""
ALPHA = 0.5
SEED = 0
TRAIN_PER_GROUP = 30
TEST_PER_GROUP = 25


def main() -> None:
    """Create what is missing in `volumes/`."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--model", choices=list(MAKERS), default="mpnet", help="the base model; name it in run.yaml too")
    model = arguments.parse_args().model
    cache = cache_folder()
    volumes = fill_volumes(Path(__file__).resolve(), model, {claim: partial(_write, claim=claim, cache=cache) for claim in SITES})
    print(f"ready: {model} and the data of {len(SITES)} sites in {volumes}")


def sites_rows(train: list[Row], test: list[Row]) -> dict[str, tuple[list[Row], list[Row]]]:
    """By volume claim: the training and validation rows of the site."""
    train = [train[row] for row in balanced_sample([row["label"] for row in train], TRAIN_PER_GROUP, seed=SEED)]
    test = [test[row] for row in balanced_sample([row["label"] for row in test], TEST_PER_GROUP, seed=SEED)]
    shares = dirichlet_shares([row["label"] for row in train], [size for size, _ in SITES.values()], alpha=ALPHA, seed=SEED)
    splits = [
        [[rows[at] for at in site] for site in split_rows([row["label"] for row in rows], shares, seed=SEED)] for rows in (train, test)
    ]
    return {claim: (splits[0][site], splits[1][site]) for site, claim in enumerate(SITES)}


def _write(folder: Path, *, claim: str, cache: Path) -> None:
    train, validation = sites_rows(*newsgroups(cache))[claim]
    suffix = SITES[claim][1]
    write_rows(folder / f"train.{suffix}", train)
    write_rows(folder / f"validation.{suffix}", validation)
    groups = len({row["label"] for row in train})
    print(f"  {claim}: {len(train)} documents of {groups} groups for training, {len(validation)} for validation ({suffix})")


if __name__ == "__main__":
    main()
