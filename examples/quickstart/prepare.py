"""Fetches the quick start's model and data, and deals 20 Newsgroups among its three sites: `volumes/` beside this file.

Run it again and it does nothing. The sites' training documents are dealt group by group in uneven shares, and the test
documents in the same shares: each site is measured on groups as it has them, and the three validation sets together are the
test sample itself, every document once and every group as often as the others: a fair judge of a model for all sites.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from ingredients.folders import digest_of, linked, made_once  # noqa: E402 - found by the line above
from ingredients.models import MAKERS, model_folder  # noqa: E402 - likewise
from ingredients.newsgroups import newsgroups  # noqa: E402 - likewise
from ingredients.packages import cache_folder  # noqa: E402 - likewise
from ingredients.splitting import dealt, even_sample, uneven_shares  # noqa: E402 - likewise
from ingredients.tables import Row, write_rows  # noqa: E402 - likewise

SITES = {"campus-news": (0.5, "jsonl"), "office-news": (0.3, "csv"), "cabin-news": (0.2, "parquet")}
"""By volume claim: the site's part of the documents, and the format it keeps them in."""
ALPHA = 0.5
SEED = 0
TRAIN_PER_GROUP = 300
TEST_PER_GROUP = 25

VOLUMES = HERE / "volumes"


def main() -> None:
    """Make what is missing below `volumes/`."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--model", choices=list(MAKERS), default="mpnet", help="the base model; name it in run.yaml too")
    model = arguments.parse_args().model
    cache = cache_folder()
    linked(VOLUMES / "models" / model, model_folder(model, cache))
    code = digest_of([Path(__file__), *sorted((HERE.parent / "ingredients").glob("*.py"))])
    for claim in SITES:
        made_once(VOLUMES / claim, partial(_write, claim=claim, cache=cache), made_from=code)
    print(f"ready: {model} and the data of {len(SITES)} sites in {VOLUMES}")


def sites_rows(train: list[Row], test: list[Row]) -> dict[str, tuple[list[Row], list[Row]]]:
    """By volume claim: the site's training and validation rows."""
    train = [train[row] for row in even_sample([row["label"] for row in train], TRAIN_PER_GROUP, seed=SEED)]
    test = [test[row] for row in even_sample([row["label"] for row in test], TEST_PER_GROUP, seed=SEED)]
    shares = uneven_shares([row["label"] for row in train], [size for size, _ in SITES.values()], alpha=ALPHA, seed=SEED)
    parts = [[[rows[at] for at in site] for site in dealt([row["label"] for row in rows], shares, seed=SEED)] for rows in (train, test)]
    return {claim: (parts[0][site], parts[1][site]) for site, claim in enumerate(SITES)}


def _write(folder: Path, *, claim: str, cache: Path) -> None:
    train, validation = sites_rows(*newsgroups(cache))[claim]
    suffix = SITES[claim][1]
    write_rows(folder / f"train.{suffix}", train)
    write_rows(folder / f"validation.{suffix}", validation)
    groups = len({row["label"] for row in train})
    print(f"  {claim}: {len(train)} documents of {groups} groups to train on, {len(validation)} to measure on ({suffix})")


if __name__ == "__main__":
    main()
