"""Downloads the model, and writes questions about short texts at three sites, in `volumes/` beside this file.

The texts, questions and answers are made by this script, in the columns of SQuAD: enough to see a model learn to answer from a text, and no
measure of anything. Files of SQuAD itself have the same columns, and can take their place.
"""

import argparse
import json
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ingredients.tables import write_rows
from ingredients.volumes import fill_volumes

SITES = {"museum-texts": (0.5, "jsonl"), "harbour-texts": (0.3, "csv"), "school-texts": (0.2, "parquet")}
"""By volume claim: the site's share of the questions, and the format of its files."""
QUESTIONS = (600, 120)
"""For training and validation, of all sites together."""

MODEL = "smollm2"
_NAMES = ("Anna", "Boris", "Chen", "Dilek", "Emeka", "Fatou", "Goran", "Hana")
_THINGS = {"museum": ("a vase", "a map", "a coin"), "harbour": ("a crane", "a net", "a boat"), "school": ("a desk", "a bell", "a globe")}
_PLACES = ("the hall", "the cellar", "the yard", "the tower")


def main() -> None:
    """Create what is missing in `volumes/`."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    volumes = fill_volumes(Path(__file__).resolve(), MODEL, {claim: partial(_write, claim=claim) for claim in SITES})
    print(f"ready: {MODEL} and the questions of {len(SITES)} sites in {volumes}")


def questions(place: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Questions of a site about texts of its own, in the columns of SQuAD."""
    draw = random.Random(f"{place}/{seed}")  # noqa: S311 - no secret
    return [_question(place, draw) for _ in range(count)]


def _question(place: str, draw: random.Random) -> dict[str, Any]:
    name, thing, where = draw.choice(_NAMES), draw.choice(_THINGS[place]), draw.choice(_PLACES)
    context = f"In {draw.randint(1900, 1999)} {name} found {thing} in {where} of the {place}."
    question, answer = draw.choice((("Who found it?", name), ("What was found?", thing), ("Where was it found?", where)))
    return {"context": context, "question": question, "answers": {"text": [answer], "answer_start": [context.index(answer)]}}


def _write(folder: Path, *, claim: str) -> None:
    share, suffix = SITES[claim]
    for seed, (name, count) in enumerate(zip(("train", "validation"), QUESTIONS, strict=True)):
        rows: Any = questions(claim.removesuffix("-texts"), round(share * count), seed)
        if suffix == "csv":
            rows = [row | {"answers": json.dumps(row["answers"])} for row in rows]
        write_rows(folder / f"{name}.{suffix}", rows)
    print(f"  {claim}: {round(share * QUESTIONS[0])} questions for training ({suffix})")


if __name__ == "__main__":
    main()
