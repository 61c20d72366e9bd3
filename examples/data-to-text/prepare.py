"""Downloads the model, and splits the restaurants of the E2E data set among three sites, in `volumes/` beside this file.

The data set cannot be redistributed. Get `devset.csv` and `testset_w_refs.csv` from its home page (the E2E NLG Challenge of Heriot-Watt
University's Interaction Lab, CC BY-SA 4.0) and pass their folder with `--data` or E2E_DATA. The sites train on the development
set and are evaluated on the test set; results with so little training data must not be compared with published ones.

The descriptions of a restaurant are split in uneven shares, with all references of a meaning representation at the same site.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ingredients.e2e import e2e_rows, restaurant
from ingredients.splitting import dirichlet_shares, split_rows
from ingredients.tables import Row, write_rows
from ingredients.volumes import fill_volumes

SITES = {"city-guide": (0.5, "jsonl"), "coast-guide": (0.3, "csv"), "valley-guide": (0.2, "parquet")}
"""By volume claim: the site's share of the meaning representations, and the format of its files."""
ALPHA = 0.5
SEED = 5  # of seeds 0 to 7, the one whose split is closest to the shares above
TEST_MEANINGS = 90

MODEL = "smollm2"


def main() -> None:
    """Create what is missing in `volumes/`."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--data", type=Path, default=os.environ.get("E2E_DATA"), help="folder of devset.csv and testset_w_refs.csv")
    files = _files(arguments.parse_args().data)
    claims = {claim: partial(_write, claim=claim, files=files) for claim in SITES}
    volumes = fill_volumes(Path(__file__).resolve(), MODEL, claims, made_from=files)
    print(f"ready: {MODEL} and the data of {len(SITES)} sites in {volumes}")


def sites_rows(train: list[Row], test: list[Row]) -> dict[str, tuple[list[Row], list[Row]]]:
    """By volume claim: the training and validation rows of the site."""
    meanings = [sorted({row["mr"] for row in rows}) for rows in (train, test)]
    names = [restaurant(meaning) for meaning in (*meanings[0], *meanings[1])]
    shares = dirichlet_shares(names, [size for size, _ in SITES.values()], alpha=ALPHA, seed=SEED)
    splits = [
        [[subset[at] for at in site] for site in split_rows([restaurant(meaning) for meaning in subset], shares, seed=SEED)]
        for subset in meanings
    ]
    validation = [site[: round(TEST_MEANINGS * len(site) / len(meanings[1]))] for site in splits[1]]
    return {claim: (_rows_of(splits[0][site], train), _rows_of(validation[site], test)) for site, claim in enumerate(SITES)}


def _rows_of(meanings: list[str], rows: list[Row]) -> list[Row]:
    return [row for meaning in meanings for row in rows if row["mr"] == meaning]


def _files(folder: Path | None) -> tuple[Path, Path]:
    if folder is None:
        raise SystemExit("no data: pass the folder of devset.csv and testset_w_refs.csv with --data FOLDER or E2E_DATA")
    files = (folder / "devset.csv", folder / "testset_w_refs.csv")
    for file in files:
        if not file.is_file():
            raise SystemExit(f"{file} does not exist: pass the folder of devset.csv and testset_w_refs.csv with --data FOLDER or E2E_DATA")
    return files


def _write(folder: Path, *, claim: str, files: tuple[Path, Path]) -> None:
    train, validation = sites_rows(*(e2e_rows(file) for file in files))[claim]
    suffix = SITES[claim][1]
    write_rows(folder / f"train.{suffix}", train)
    write_rows(folder / f"validation.{suffix}", validation)
    names = len({restaurant(row["mr"]) for row in train})
    print(f"  {claim}: {len(train)} sentences about {names} restaurants for training, {len(validation)} for validation ({suffix})")


if __name__ == "__main__":
    main()
