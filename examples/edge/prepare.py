"""Trains the toy model, and writes reports of three crews with their summaries, in `volumes/` beside this file.

Nothing is downloaded: the model is a toy of FLAN-T5's shape (`ingredients/toy_t5.py`), whose training takes one to three minutes, once; the
reports are made from tables of words (`ingredients/reports.py`). Each crew looks after another kind of machine, so that each site has words
that no other site has.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ingredients.reports import reports
from ingredients.tables import write_rows
from ingredients.volumes import fill_volumes

SITES = {"pump-reports": (0.5, "jsonl"), "lift-reports": (0.3, "csv"), "turbine-reports": (0.2, "parquet")}
"""By volume claim: the site's share of the reports, and the format of its files."""
ROWS = (600, 120)
"""For training and validation, of all sites together."""

MODEL = "toy-flan-t5"


def main() -> None:
    """Create what is missing in `volumes/`."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    volumes = fill_volumes(Path(__file__).resolve(), MODEL, {claim: partial(_write, claim=claim) for claim in SITES})
    print(f"ready: {MODEL} and the reports of {len(SITES)} sites in {volumes}")


def _write(folder: Path, *, claim: str) -> None:
    share, suffix = SITES[claim]
    machine = claim.removesuffix("-reports")
    for seed, (name, count) in enumerate(zip(("train", "validation"), ROWS, strict=True)):
        write_rows(folder / f"{name}.{suffix}", reports(machine, round(share * count), seed=1 + seed))
    print(f"  {claim}: {round(share * ROWS[0])} reports for training ({suffix})")


if __name__ == "__main__":
    main()
