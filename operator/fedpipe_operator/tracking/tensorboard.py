"""Writes a run's event files into its store: a folder for the federation and one for each site, which TensorBoard shows in one chart.

Each file is written as a whole. That of the federation is written last: its last step says up to which round all of them are written, so
after a kill in between the others are cut there, and get the same bytes again.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Final

from fedpipe_operator import names
from fedpipe_operator.store import Store
from fedpipe_operator.tracking import event_files
from fedpipe_operator.tracking.content import RoundEntry, parameters
from fedpipe_operator.tracking.records import FinishedRounds

_FILE_BYTES: Final = 4 * 2**20
"""A file of a thousand rounds has a quarter of it. Its checksums take half a second, and whoever owns the bucket may write any file."""
_ROUNDS_AT_ONCE: Final = 20
"""So that a tracker which is added to a long run gets on, however slow the store is."""


def write_event_files(rounds: FinishedRounds) -> int | None:
    """Write what the files do not have yet; the last round that they have, None if there is none. Raises what the store raises."""
    if rounds.first_plan is None:
        return None
    last = event_files.last_step(_read(rounds.store, ""))
    last = -1 if last is None else last
    while new := list(islice(rounds.after(last), _ROUNDS_AT_ONCE)):
        _append(rounds, last, new)
        last = new[-1].round
    return None if last < 0 else last


def _append(rounds: FinishedRounds, last: int, new: Sequence[RoundEntry]) -> None:
    """Write the files with these rounds behind the last one that all of them have."""
    store = rounds.store
    for site in sorted({site for entry in new for site in entry.by_site}):
        known = event_files.up_to(_read(store, site), last)
        store.write(names.event_file(site), _with_site(known, site, new))
    store.write(names.event_file(""), _with_rounds(event_files.up_to(_read(store, ""), last), rounds, new))


def _read(store: Store, site: str) -> bytes:
    return store.read_start(names.event_file(site), _FILE_BYTES) or b""


def _with_rounds(known: bytes, rounds: FinishedRounds, new: Sequence[RoundEntry]) -> bytes:
    head = known
    if not known:
        assert rounds.first_plan is not None  # noqa: S101 -- the caller asked
        run = event_files.table(sorted(parameters(rounds.run.spec, rounds.first_plan).items()))
        head = event_files.beginning(new[0].at) + event_files.text(new[0].round, new[0].at, "run", run)
    return head + b"".join(event_files.scalars(entry.round, entry.at, entry.figures) for entry in new)


def _with_site(known: bytes, site: str, new: Sequence[RoundEntry]) -> bytes:
    of_site = [entry for entry in new if site in entry.by_site]
    head = known or event_files.beginning(of_site[0].at)
    return head + b"".join(event_files.scalars(entry.round, entry.at, entry.by_site[site]) for entry in of_site)
