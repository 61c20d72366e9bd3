"""How an update is written: as one object, or where it is large in pieces that a bad line carries. Pure: what signs is an argument.

Each piece has a form of its own, which binds its key and its size: so all pieces together are as large as the plan allows an adapter to be,
and one more piece. A store without such forms gets the update as one object.
"""

import math
from collections.abc import Callable
from typing import Final

from fedpipe_operator import names
from fedpipe_trainer.contract import PiecesUpload, PostForm, Upload
from fedpipe_trainer.contract.task import LEAST_PIECE_BYTES, MAX_PIECES

PIECES_FROM_BYTES: Final = 8 << 20
"""A smaller update is sent again as a whole: that takes a line of 10 Mbit/s seven seconds, and spares a request for each piece."""
_FORM_BYTES: Final = 400_000
"""Of the forms of a task, together: it is a Secret, which holds a megabyte, and so is what else the task has."""
_PIECES_OF_A_RUN: Final = 100_000
"""A run with more objects could not be listed, and so not be deleted."""


def update_upload(write: Callable[[str, int], Upload], key: str, folder: str, *, at_most: int, updates: int) -> Upload | PiecesUpload:
    """How an update of at most so many bytes is written.

    Args:
        write: how one object is written, by its key and its greatest size.
        key: of the update as one object.
        folder: of its pieces.
        at_most: bytes of the update.
        updates: that the run has, of all sites and rounds.
    """
    whole = write(key, at_most)
    if at_most < PIECES_FROM_BYTES or not isinstance(whole, PostForm):
        return whole
    size = piece_bytes(at_most, form_bytes=len(whole.model_dump_json()), updates=updates)
    pieces = tuple(write(names.piece(folder, number), size) for number in range(math.ceil(at_most / size)))
    return PiecesUpload(piece_bytes=size, pieces=pieces) if len(pieces) > 1 else whole


def piece_bytes(at_most: int, *, form_bytes: int, updates: int) -> int:
    """Bytes of a piece: as few as the number of forms allows, since after a cut connection a piece is sent again."""
    most = min(MAX_PIECES, _FORM_BYTES // form_bytes, _PIECES_OF_A_RUN // max(1, updates))
    return max(LEAST_PIECE_BYTES, math.ceil(at_most / max(1, most)))
