"""Downloads the model, and writes conversations of three service desks, in `volumes/` beside this file.

The conversations are made by this script, from tables of products, faults and answers that differ from desk to desk: enough to see a chat
model learn its desks' ways, and no measure of anything. The files have the three forms that such data comes in: jsonl with a list of
messages, CSV with the list as JSON text, and parquet.
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

SITES = {"phone-desk": (0.5, "jsonl"), "printer-desk": (0.3, "csv"), "router-desk": (0.2, "parquet")}
"""By volume claim: the site's share of the conversations, and the format of its files."""
CONVERSATIONS = (600, 120)
"""For training and validation, of all sites together."""

MODEL = "smollm2"
_FAULTS = {
    "phone": {"does not charge": "Clean the port with a dry brush.", "is slow": "Restart it.", "is hot": "Take it out of its case."},
    "printer": {"prints stripes": "Clean it twice.", "jams": "Open the rear cover.", "is offline": "Press the network button."},
    "router": {"blinks red": "Unplug it for a minute.", "is slow": "Move it away from the wall.", "drops calls": "Update it."},
}
_MODELS = ("A1", "B20", "C3", "D45")


def main() -> None:
    """Create what is missing in `volumes/`."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    volumes = fill_volumes(Path(__file__).resolve(), MODEL, {claim: partial(_write, claim=claim) for claim in SITES})
    print(f"ready: {MODEL} and the conversations of {len(SITES)} sites in {volumes}")


def conversations(product: str, count: int, seed: int) -> list[list[dict[str, str]]]:
    """Conversations of a desk, each a list of messages with `role` and `content`."""
    draw = random.Random(f"{product}/{seed}")  # noqa: S311 - no secret
    return [_conversation(product, draw) for _ in range(count)]


def _conversation(product: str, draw: random.Random) -> list[dict[str, str]]:
    fault, answer = draw.choice(sorted(_FAULTS[product].items()))
    turns = [
        ("system", f"You are the {product} desk. Answer in one sentence."),
        ("user", f"My {product} {draw.choice(_MODELS)} {fault}."),
        ("assistant", answer),
    ]
    if draw.random() < 0.5:  # noqa: PLR2004 - half of them
        turns += [("user", "That did not help."), ("assistant", f"Then bring the {product} to our counter.")]
    return [{"role": role, "content": content} for role, content in turns]


def _write(folder: Path, *, claim: str) -> None:
    share, suffix = SITES[claim]
    product = claim.removesuffix("-desk")
    for seed, (name, count) in enumerate(zip(("train", "validation"), CONVERSATIONS, strict=True)):
        made: Any = conversations(product, round(share * count), seed)
        write_rows(folder / f"{name}.{suffix}", [{"messages": json.dumps(one) if suffix == "csv" else one} for one in made])
    print(f"  {claim}: {round(share * CONVERSATIONS[0])} conversations for training ({suffix})")


if __name__ == "__main__":
    main()
