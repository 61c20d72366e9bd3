"""Downloads the model, and writes pairs of answers of three service desks, in `volumes/` beside this file.

The pairs are made by this script, from tables of products, faults and answers that differ from desk to desk: the better answer says what to
do, the other one only apologises, or is the answer to another fault. Enough to see a model learn what its desks prefer, and no measure of
anything. The columns are those of TRL's explicit prompt, in the three forms that such data comes in: jsonl with lists of messages, CSV with
the lists as JSON text, and parquet.
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

SITES = {"phone-answers": (0.5, "jsonl"), "printer-answers": (0.3, "csv"), "router-answers": (0.2, "parquet")}
"""By volume claim: the site's share of the pairs, and the format of its files."""
PAIRS = (600, 120)
"""For training and validation, of all sites together."""

MODEL = "smollm2"
_FAULTS = {
    "phone": {"does not charge": "Clean the port with a dry brush.", "is slow": "Restart it.", "is hot": "Take it out of its case."},
    "printer": {"prints stripes": "Clean it twice.", "jams": "Open the rear cover.", "is offline": "Press the network button."},
    "router": {"blinks red": "Unplug it for a minute.", "is slow": "Move it away from the wall.", "drops calls": "Update it."},
}
_MODELS = ("A1", "B20", "C3", "D45")
_APOLOGIES = (
    "I am sorry to hear that.",
    "We regret the trouble that your {product} gives you.",
    "I am afraid that I cannot help with a {product}.",
)


def main() -> None:
    """Create what is missing in `volumes/`."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    volumes = fill_volumes(Path(__file__).resolve(), MODEL, {claim: partial(_write, claim=claim) for claim in SITES})
    print(f"ready: {MODEL} and the pairs of answers of {len(SITES)} sites in {volumes}")


def pairs(product: str, count: int, seed: int) -> list[dict[str, list[dict[str, str]]]]:
    """Pairs of answers at a desk, in the columns prompt, chosen and rejected, each a list of messages with `role` and `content`."""
    draw = random.Random(f"{product}/{seed}")  # noqa: S311 - no secret
    return [_pair(product, draw) for _ in range(count)]


def _pair(product: str, draw: random.Random) -> dict[str, list[dict[str, str]]]:
    answers = _FAULTS[product]
    fault = draw.choice(sorted(answers))
    others = [answer for one, answer in sorted(answers.items()) if one != fault]
    apologises = draw.random() < 0.5  # noqa: PLR2004 - half of them
    rejected = draw.choice(_APOLOGIES).format(product=product) if apologises else draw.choice(others)
    turns = [
        ("system", f"You are the {product} desk. Answer in one sentence."),
        ("user", f"My {product} {draw.choice(_MODELS)} {fault}."),
        ("assistant", answers[fault]),
        ("assistant", rejected),
    ]
    *prompt, chosen, other = [{"role": role, "content": content} for role, content in turns]
    return {"prompt": prompt, "chosen": [chosen], "rejected": [other]}


def _write(folder: Path, *, claim: str) -> None:
    share, suffix = SITES[claim]
    product = claim.removesuffix("-answers")
    for seed, (name, count) in enumerate(zip(("train", "validation"), PAIRS, strict=True)):
        rows: Any = pairs(product, round(share * count), seed)
        if suffix == "csv":
            rows = [{column: json.dumps(messages) for column, messages in row.items()} for row in rows]
        write_rows(folder / f"{name}.{suffix}", rows)
    print(f"  {claim}: {round(share * PAIRS[0])} pairs for training ({suffix})")


if __name__ == "__main__":
    main()
