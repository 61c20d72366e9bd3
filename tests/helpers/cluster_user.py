"""kubectl as a user runs it: its answers as JSON, and waits that time out with a message that names the condition."""

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
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0
_PAUSE: Final = 0.1
"""As a share of the time waited so far. A call of kubectl takes a tenth of a second of processor time, and four workers wait at once."""


class KubectlError(Exception):
    """kubectl failed; the message holds its standard error."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl in one namespace, as the kubeconfig's user or as `user`."""

    namespace: str
    user: str = ""

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        done = self._run(*arguments, given=given)
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def rejection(self, *arguments: str, given: str | None = None) -> str:
        """The error message of a command that must fail."""
        done = self._run(*arguments, given=given)
        assert done.returncode, f"kubectl {' '.join(arguments)} was accepted: {done.stdout}"
        return done.stderr

    def get(self, kind: str, name: str) -> Plain:
        """One object."""
        found: Plain = json.loads(self("get", kind, name, "-o", "json"))
        return found

    def list(self, kind: str, labels: str = "", *, fields: str = "") -> list[Plain]:
        """The objects that match these label and field selectors."""
        found: list[Plain] = json.loads(self("get", kind, "-o", "json", f"--selector={labels}", f"--field-selector={fields}"))["items"]
        return found

    def apply(self, *objects: Plain) -> None:
        """Create or update these objects."""
        self("apply", "-f", "-", given=list_manifest(*objects))

    def patch(self, kind: str, name: str, change: Plain) -> None:
        """Apply a merge patch."""
        self("patch", kind, name, "--type=merge", "-p", json.dumps(change))

    def _run(self, *arguments: str, given: str | None) -> "subprocess.CompletedProcess[str]":
        impersonation = [f"--as={self.user}"] if self.user else []
        command = ["kubectl", f"--namespace={self.namespace}", *impersonation, *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def list_manifest(*objects: Plain) -> str:
    """The objects as one List that kubectl reads."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def role_binding(role: str) -> Plain:
    """A binding of the role to the user `a-ROLE`."""
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"a-{role}"}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": role},
        "roleRef": reference,
        "subjects": [subject],
    }


def condition(body: Plain, kind: str) -> Plain:
    """The object's condition of this type; empty if it has none."""
    found: list[Plain] = body.get("status", {}).get("conditions", [])
    return next((one for one in found if one["type"] == kind), {})


def wait_until(poll: Callable[[], Found | None], what: str, *, seconds: float, explain: Callable[[], str] = lambda: "") -> Found:
    """Poll until the result is truthy and return it; errors of kubectl count as "not yet", since the API server may be away."""
    start = time.monotonic()
    last: object = None
    while (waited := time.monotonic() - start) < seconds:
        try:
            if found := poll():
                return found
        except KubectlError as error:
            last = error
        time.sleep(min(max(_SHORTEST_PAUSE, _PAUSE * waited), _LONGEST_PAUSE))
    raise AssertionError(f"timed out after {seconds:.0f} s: {what}\n{last or ''}\n{explain()}")
