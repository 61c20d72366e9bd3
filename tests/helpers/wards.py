"""A namespace with sites, volumes and a store for one test, and the looks at its runs that tests share."""

import base64
import copy
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from cluster_user import FFT, SITE, Kubectl, KubectlError, Plain, condition, until
from installed_operator import Operator, namespace

from fedpipe_operator import names
from fedpipe_operator.store import Credentials, S3Store

STORE: Final = Kubectl("minio")
SECRET: Final = "fedpipe-store"  # noqa: S105 -- the Secret's name
BUCKET: Final = "fedpipe"
SHORT: Final = {"rounds": {"count": 1}, "export": {"adapter": False, "merged": False}}
"""What makes a run of the toy fleet as short as can be."""
POOLS: Final = {
    "north": {"fedpipe.io/pool": "small"},
    "south": {"fedpipe.io/pool": "large"},
    "west": {"fedpipe.io/medium": "true"},
}


def store_endpoint() -> str:
    """Where pods find the store."""
    return os.environ["FEDPIPE_STORE_ENDPOINT"]


def store_credentials() -> Credentials:
    """The store's key pair."""
    data = STORE.get("secret", SECRET)["data"]
    return Credentials(*(base64.b64decode(data[name]).decode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")))


def store_at(prefix: str) -> S3Store:
    """The store as this machine reaches it."""
    endpoint = os.environ.get("FEDPIPE_STORE_FROM_HOST") or store_endpoint()
    return S3Store(BUCKET, prefix, endpoint=endpoint, credentials=store_credentials())


@dataclass(frozen=True)
class Ward:
    """A namespace, and what is in it."""

    kubectl: Kubectl
    operator: Operator
    fleet: Path
    """The folder of a toy fleet: the objects in run.yaml, and a folder in volumes/ for each claim."""

    def open(self) -> None:
        """Make the namespace, the store's Secret, the volumes and the claims that take them."""
        keys = store_credentials()
        pair = {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": pair}
        self.open_empty()
        self.kubectl.apply(secret, *(self.claim(folder) for folder in self._folders()))

    def open_empty(self) -> None:
        """Make the namespace, and volumes for claims of their names; what is still going of an earlier one is waited for."""
        self.kubectl("wait", "--for=delete", f"namespace/{self.name}", "--timeout=150s")
        self.kubectl.apply(namespace(self.name), *(self.volume(folder) for folder in self._folders()))

    def close(self) -> None:
        """Remove all of it, the runs' objects in the store included."""
        self.kubectl("delete", FFT, "--all", "--timeout=90s")
        self.kubectl("delete", "namespace", self.name, "--wait=false")
        self.kubectl("delete", "pv", f"--selector=fedpipe-test={self.name}", "--wait=false")
        store_at(f"runs/{self.name}").delete("")

    @property
    def name(self) -> str:
        """The namespace's."""
        return self.kubectl.namespace

    def site(self, name: str, data: str = "", **spec: Any) -> Plain:
        """A site of the toy fleet; `spec` replaces fields, `data` is the site whose rows it has."""
        found = copy.deepcopy(self._document("EdgeSite", data or name))
        found["metadata"] = {"name": name, "labels": {"ward": self.name}}
        found["spec"] |= {"capacity": {"cpu": 1, "memory": "2Gi"}, "nodeSelector": POOLS.get(name, {})} | spec
        return found

    def run(self, name: str = "toy", **spec: Any) -> Plain:
        """The toy fleet's run; `spec` replaces fields."""
        found = copy.deepcopy(self._document("FederatedFineTune", "toy"))
        found["metadata"] = {"name": name, "labels": {}}
        found["spec"]["store"] |= {"endpoint": store_endpoint(), "credentialsSecretRef": {"name": SECRET}}
        found["spec"] |= spec
        return found

    def volume(self, folder: Path) -> Plain:
        """A folder of this machine, which the nodes see, for the claim of its name."""
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{self.name}-{folder.name}", "labels": {"fedpipe-test": self.name}},
            "spec": {
                "storageClassName": "",
                "accessModes": ["ReadOnlyMany", "ReadWriteOnce", "ReadWriteMany"],
                "capacity": {"storage": "2Gi"},
                "claimRef": {"namespace": self.name, "name": folder.name},
                "hostPath": {"path": str(folder), "type": "Directory"},
            },
        }

    def claim(self, folder: Path) -> Plain:
        """The claim of that volume."""
        size = {"requests": {"storage": "1Gi"}}
        spec = {"storageClassName": "", "accessModes": ["ReadOnlyMany"], "volumeName": f"{self.name}-{folder.name}", "resources": size}
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": folder.name}, "spec": spec}

    def start(self, *sites: str, name: str = "toy", **spec: Any) -> None:
        """Create these sites of the toy fleet and a run."""
        self.kubectl.apply(*(self.site(one) for one in sites), self.run(name, **spec))

    def look(self, name: str = "toy") -> Plain:
        """The run as it is now."""
        return self.kubectl.get(FFT, name)

    def of_site(self, name: str) -> Plain:
        """The site as it is now."""
        return self.kubectl.get(SITE, name)

    def wait(self, what: str, is_so: Callable[[], Any], *, seconds: float = 300) -> Any:
        """Until it is so; what is seen then. A failure says how all stands."""
        return until(is_so, what, seconds=seconds, explain=self.explain)

    def wait_for(self, reason: str, *, name: str = "toy", round_: int | None = None, seconds: float = 300) -> Plain:
        """Until the run is ready or held up for this reason, in this round."""

        def look() -> Plain | None:
            body = self.look(name)
            told = condition(body, "Ready").get("reason")
            assert told == reason or not is_over(body), f"{name} has ended: {told}\n{self.explain()}"
            return body if told == reason and round_ in (None, body["status"].get("round")) else None

        found: Plain = self.wait(f"{name} is {reason}{f' in round {round_}' if round_ else ''}", look, seconds=seconds)
        return found

    def wait_until_complete(self, name: str = "toy", *, seconds: float = 900) -> Plain:
        """Until the run is complete."""

        def look() -> Plain | None:
            body = self.look(name)
            assert condition(body, "Failed").get("status") != "True", f"{name} failed\n{self.explain()}"
            return body if condition(body, "Complete").get("status") == "True" else None

        found: Plain = self.wait(f"{name} is complete", look, seconds=seconds)
        return found

    def trainer_at_work(self, job: str, *, seconds: float = 300) -> Plain:
        """The pod of this Job, once it runs."""

        def look() -> Plain | None:
            pods = self.kubectl.list("pods", f"batch.kubernetes.io/job-name={job}")
            return next((pod for pod in pods if pod["status"]["phase"] == "Running"), None)

        found: Plain = self.wait(f"a pod of {job} runs", look, seconds=seconds)
        return found

    def change(self, name: str = "toy", **spec: Any) -> None:
        """Change fields of the run's spec."""
        self.kubectl.patch(FFT, name, {"spec": spec})

    def events(self, kind: str, name: str) -> dict[str, str]:
        """The messages of the events about an object, by reason, the newest of each."""
        found = self.kubectl.list("events", fields=f"involvedObject.kind={kind},involvedObject.name={name}")
        return {one["reason"]: one.get("message", "") for one in sorted(found, key=lambda one: one["metadata"]["creationTimestamp"])}

    def store_of(self, run: Plain) -> S3Store:
        """The run's own part of the store."""
        meta = run["metadata"]
        return store_at(names.run_prefix(run["spec"]["store"]["prefix"], self.name, meta["name"], meta["uid"]))

    def left_of(self, run: Plain) -> list[str]:
        """What is still there of a run: its Jobs, Secrets and pods."""
        label = f"fedpipe.io/run-uid={run['metadata']['uid']}"
        found = [one for kind in ("jobs", "secrets", "pods") for one in self.kubectl.list(kind, label)]
        return [f"{one['kind']} {one['metadata']['name']}" for one in found]

    def explain(self) -> str:
        """How all stands, for a test that failed."""
        said = [_told(run) for run in self._try(lambda: self.kubectl.list(FFT), [])]
        said.append(self._try(lambda: self.kubectl("get", "jobs,pods", "-o", "wide"), "no pods are told of"))
        return "\n".join([*said, "The operator's last words:", self.operator.log()])

    def _try(self, ask: Callable[[], Any], instead: Any) -> Any:
        try:
            return ask()
        except KubectlError:
            return instead

    def _document(self, kind: str, name: str) -> Plain:
        documents = yaml.safe_load_all((self.fleet / "run.yaml").read_text())
        found: Plain = next(one for one in documents if (one["kind"], one["metadata"]["name"]) == (kind, name))
        return found

    def _folders(self) -> list[Path]:
        return sorted((self.fleet / "volumes").iterdir())


WardCalled = Callable[[str], AbstractContextManager[Ward]]
"""Opens a namespace of this name, and closes it again."""


def is_over(run: Plain) -> bool:
    """Whether the run has ended, well or not."""
    return any(condition(run, kind).get("status") == "True" for kind in ("Complete", "Failed"))


def _told(run: Plain) -> str:
    conditions = run.get("status", {}).get("conditions", [])
    lines = [f"  {one['type']}={one['status']} {one['reason']}: {one.get('message', '')}" for one in conditions]
    return "\n".join([f"{run['metadata']['name']}, round {run.get('status', {}).get('round')}:", *lines])
