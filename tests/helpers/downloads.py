"""What a trainer's process holds of downloaded models."""

import os

from fedpipe_trainer.model import download_cache, identity


def end_process() -> None:
    """Release the locks and forget the hashes of this process, as at its end: what follows is another process."""
    for lock in download_cache._in_use.values():
        os.close(lock)
    download_cache._in_use.clear()
    identity._known.clear()
