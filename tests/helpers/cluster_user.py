"""A cluster as its user has it: kubectl, its answers as JSON, and waits that end and say what they waited for."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

Plain = dict[str, Any]
Found = TypeVar("Found")

FFT: Final = "federatedfinetunes.fedpipe.io"
SITE: Final = "edgesites.fedpipe.io"
_POLL_SECONDS: Final = 0.5


class KubectlError(Exception):
    """What kubectl says when it fails."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl in one namespace, as whoever the kubeconfig names, or as somebody else."""

    namespace: str
    user: str = ""

    def __call__(self, *words: str, given: str | None = None) -> str:
        done = self._run(*words, given=given)
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def refused(self, *words: str, given: str | None = None) -> str:
        """What kubectl says of what may not be."""
        done = self._run(*words, given=given)
        assert done.returncode, f"kubectl {' '.join(words)} was let through: {done.stdout}"
        return done.stderr

    def get(self, kind: str, name: str) -> Plain:
        """One object."""
        found: Plain = json.loads(self("get", kind, name, "-o", "json"))
        return found

    def list(self, kind: str, labels: str = "", *, fields: str = "") -> list[Plain]:
        """The objects with these labels and fields."""
        found: list[Plain] = json.loads(self("get", kind, "-o", "json", f"--selector={labels}", f"--field-selector={fields}"))["items"]
        return found

    def apply(self, *objects: Plain) -> None:
        """Make these objects as they are written."""
        self("apply", "-f", "-", given=as_list(*objects))

    def patch(self, kind: str, name: str, change: Plain) -> None:
        """Change these fields."""
        self("patch", kind, name, "--type=merge", "-p", json.dumps(change))

    def _run(self, *words: str, given: str | None) -> "subprocess.CompletedProcess[str]":
        who = [f"--as={self.user}"] if self.user else []
        command = ["kubectl", f"--namespace={self.namespace}", *who, *words]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def as_list(*objects: Plain) -> str:
    """Objects as kubectl reads them."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def condition(body: Plain, kind: str) -> Plain:
    """The object's condition of this type; empty while there is none."""
    found: list[Plain] = body.get("status", {}).get("conditions", [])
    return next((one for one in found if one["type"] == kind), {})


def until(look: Callable[[], Found | None], what: str, *, seconds: float, explain: Callable[[], str] = lambda: "") -> Found:
    """What `look` finds, looked for again and again; an API server that is away is waited for."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except KubectlError as error:
            last = error
        time.sleep(_POLL_SECONDS)
    raise AssertionError(f"not within {seconds:.0f} s: {what}\n{last or ''}\n{explain()}")
