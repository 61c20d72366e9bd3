"""Fetches the model, and deals the E2E data set's restaurants among three sites: `volumes/` beside this file.

The data set is not ours to pass on. Get `devset.csv` and `testset_w_refs.csv` from its home (the E2E NLG Challenge of Heriot-Watt
University's Interaction Lab, CC BY-SA 4.0) and name their folder by `--data` or E2E_DATA. The sites train on the development
set and are measured on the test set; figures from so little training data must not be compared with published ones.

A restaurant's descriptions are dealt in uneven shares, all references of one meaning representation to the same site.
"""

import argparse
import csv
import os
import re
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from ingredients.folders import digest_of, linked, made_once  # noqa: E402 - found by the line above
from ingredients.models import model_folder  # noqa: E402 - likewise
from ingredients.packages import cache_folder  # noqa: E402 - likewise
from ingredients.splitting import dealt, uneven_shares  # noqa: E402 - likewise
from ingredients.tables import Row, write_rows  # noqa: E402 - likewise

SITES = {"city-guide": (0.5, "jsonl"), "coast-guide": (0.3, "csv"), "valley-guide": (0.2, "parquet")}
"""By volume claim: the site's part of the meaning representations, and the format it keeps them in."""
ALPHA = 0.5
SEED = 5  # of seeds 0 to 7, the one whose parts come nearest to those above
TEST_MEANINGS = 90

MODEL = "smollm2"
VOLUMES = HERE / "volumes"


def main() -> None:
    """Make what is missing below `volumes/`."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--data", type=Path, default=os.environ.get("E2E_DATA"), help="folder of devset.csv and testset_w_refs.csv")
    files = _files(arguments.parse_args().data)
    linked(VOLUMES / "models" / MODEL, model_folder(MODEL, cache_folder()))
    code = digest_of([*files, Path(__file__), *sorted((HERE.parent / "ingredients").glob("*.py"))])
    for claim in SITES:
        made_once(VOLUMES / claim, partial(_write, claim=claim, files=files), made_from=code)
    print(f"ready: {MODEL} and the data of {len(SITES)} sites in {VOLUMES}")


def sites_rows(train: list[Row], test: list[Row]) -> dict[str, tuple[list[Row], list[Row]]]:
    """By volume claim: the site's training and validation rows."""
    meanings = [sorted({row["mr"] for row in rows}) for rows in (train, test)]
    names = [restaurant(meaning) for meaning in (*meanings[0], *meanings[1])]
    shares = uneven_shares(names, [size for size, _ in SITES.values()], alpha=ALPHA, seed=SEED)
    parts = [[[held[at] for at in site] for site in dealt([restaurant(one) for one in held], shares, seed=SEED)] for held in meanings]
    validation = [site[: round(TEST_MEANINGS * len(site) / len(meanings[1]))] for site in parts[1]]
    return {claim: (_rows_of(parts[0][site], train), _rows_of(validation[site], test)) for site, claim in enumerate(SITES)}


def restaurant(meaning: str) -> str:
    """The name in a meaning representation such as `name[Cotto], area[riverside]`."""
    found = re.search(r"name\[([^\]]+)\]", meaning)
    return found[1] if found else ""


def _rows_of(meanings: list[str], rows: list[Row]) -> list[Row]:
    return [row for meaning in meanings for row in rows if row["mr"] == meaning]


def _files(folder: Path | None) -> tuple[Path, Path]:
    if folder is None:
        raise SystemExit("where is the data? Name the folder of devset.csv and testset_w_refs.csv by --data FOLDER or E2E_DATA")
    files = (folder / "devset.csv", folder / "testset_w_refs.csv")
    for file in files:
        if not file.is_file():
            raise SystemExit(f"there is no {file}: name the folder of devset.csv and testset_w_refs.csv by --data FOLDER or E2E_DATA")
    return files


def _write(folder: Path, *, claim: str, files: tuple[Path, Path]) -> None:
    train, validation = sites_rows(*(_read(file) for file in files))[claim]
    suffix = SITES[claim][1]
    write_rows(folder / f"train.{suffix}", train)
    write_rows(folder / f"validation.{suffix}", validation)
    names = len({restaurant(row["mr"]) for row in train})
    print(f"  {claim}: {len(train)} sentences about {names} restaurants to train on, {len(validation)} to measure on ({suffix})")


def _read(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as stream:
        return [{"mr": row["mr"], "ref": row["ref"]} for row in csv.DictReader(stream)]


if __name__ == "__main__":
    main()
