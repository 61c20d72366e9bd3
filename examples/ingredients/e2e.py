"""The E2E data set (Novikova et al. 2017), read from a folder of the user's: it cannot be redistributed."""

import csv
import re
from pathlib import Path

from ingredients.tables import Row


def e2e_rows(file: Path) -> list[Row]:
    """Meaning representations `mr` and sentences `ref`."""
    with file.open(encoding="utf-8", newline="") as stream:
        return [{"mr": row["mr"], "ref": row["ref"]} for row in csv.DictReader(stream)]


def restaurant(meaning: str) -> str:
    """The name in a meaning representation such as `name[Cotto], area[riverside]`."""
    found = re.search(r"name\[([^\]]+)\]", meaning)
    return found[1] if found else ""
