"""The history of the operator's Lease, as a watch tells it: which pod held it, from when to when."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from installed_operator import RELEASE


@dataclass
class LeaseHistory:
    """Every version of the Lease that the watch told of."""

    specs: list[dict[str, Any]] = field(default_factory=list)

    def holders(self) -> list[str]:
        """Each holder in turn; "" where the Lease was released."""
        found = [spec["holderIdentity"] for spec in self.specs]
        return [holder for at, holder in enumerate(found) if at == 0 or found[at - 1] != holder]

    def acquired(self, holder: str) -> float:
        """When this pod acquired the Lease, in Unix time."""
        return next(_unix(spec["acquireTime"]) for spec in self.specs if spec["holderIdentity"] == holder)

    def released(self) -> float:
        """When the Lease was last released, in Unix time."""
        return max(_unix(spec["renewTime"]) for spec in self.specs if spec["holderIdentity"] == "")


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@contextmanager
def watched_lease(namespace: str) -> Iterator[LeaseHistory]:
    """Watch the Lease from now on."""
    history = LeaseHistory()
    command = ["kubectl", "get", "lease", RELEASE, f"--namespace={namespace}", "--watch", "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, history), daemon=True)
        reader.start()
        try:
            yield history
        finally:
            process.terminate()
            reader.join()


def _read(lines: Any, history: LeaseHistory) -> None:
    text, decoder = "", json.JSONDecoder()
    for line in lines:
        text += line
        if line.startswith("}"):  # kubectl indents what is inside of an object
            found, _ = decoder.raw_decode(text)
            history.specs.append(found["spec"])
            text = ""
