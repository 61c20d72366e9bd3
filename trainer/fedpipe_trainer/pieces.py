"""Uploads a file in pieces, each an object of its own: after a cut connection only the piece under way is sent again.

S3's upload in parts has parts of at least 5 MiB, which a line that is cut every few megabytes never carries. The operator reads the pieces
one after the other, as one file. They are sent over one connection while that lasts: a new one for each would take longer than a piece.
"""

import time
from pathlib import Path

import httpx

from fedpipe_trainer.contract import PiecesUpload, PostForm, Upload
from fedpipe_trainer.store_requests import (
    TIMEOUT,
    Sleep,
    check_status,
    read_error_code,
    retry,
    transfer_failed,
    translate_transport_errors,
    url_of,
)


def send_pieces(path: Path, to: PiecesUpload, *, attempts: int, sleep: Sleep = time.sleep) -> None:
    """Upload the file. Each piece is tried so many times in a row.

    Raises:
        TaskFailed: TransferFailed, the store refuses a piece or is unreachable, or the file has more pieces than the task has forms for.
    """
    size = path.stat().st_size
    count = max(1, -(-size // to.piece_bytes))
    if count > len(to.pieces):
        found = f"{path.name} has {count} pieces of {to.piece_bytes} bytes, and the task takes {len(to.pieces)}"
        raise transfer_failed(f"{found}: an adapter of the round's plan is smaller")
    with path.open("rb") as file, httpx.Client(timeout=TIMEOUT) as client:
        for one in to.pieces[:count]:
            content = file.read(to.piece_bytes)
            retry(lambda one=one, content=content: _send(client, content, one), url=url_of(one), attempts=attempts, sleep=sleep)  # type: ignore[misc]  # bound in the loop


def _send(client: httpx.Client, content: bytes, to: Upload) -> None:
    if isinstance(to, PostForm):
        request = client.stream("POST", to.url, data=dict(to.fields), files={"file": ("piece", content)})
    else:
        request = client.stream("PUT", to, content=content)
    with translate_transport_errors(), request as response:
        check_status(response, url_of(to), read_error_code(response))
        response.read()  # so that the connection can be used again
