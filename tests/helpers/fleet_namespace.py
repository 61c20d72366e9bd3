"""A namespace with a toy fleet for one test: volumes, claims and the store's Secret; and queries and waits for its runs."""

import base64
import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from cluster_user import FFT, SITE, Kubectl, KubectlError, Plain, condition, wait_until
from installed_operator import Operator, namespace_manifest
from job_history import name_in_run

from fedpipe_operator import names
from fedpipe_operator.api.meta import LABEL_OPERATOR_CLASS, LABEL_RUN
from fedpipe_operator.store import Credentials, S3Store

STORE: Final = Kubectl("minio")
SECRET: Final = "fedpipe-store"  # noqa: S105 -- the Secret's name
BUCKET: Final = "fedpipe"
SHORT: Final = {"rounds": {"count": 1}, "export": {"adapter": False, "merged": False}}
"""The shortest run of the toy fleet: one round, nothing exported."""
POOLS: Final = {
    "north": {"fedpipe.io/pool": "small"},
    "south": {"fedpipe.io/pool": "large"},
    "west": {"fedpipe.io/medium": "true"},
}


def store_endpoint() -> str:
    """The store's address for pods."""
    return os.environ["FEDPIPE_STORE_ENDPOINT"]


def store_credentials() -> Credentials:
    """The store's key pair."""
    data = STORE.get("secret", SECRET)["data"]
    return Credentials(*(base64.b64decode(data[name]).decode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")))


def store_from_here() -> str:
    """The store's address for this machine."""
    return os.environ.get("FEDPIPE_STORE_FROM_HOST") or store_endpoint()


def store_at(prefix: str) -> S3Store:
    """The store under this prefix, by the address that this machine uses."""
    return S3Store(BUCKET, prefix, endpoint=store_from_here(), credentials=store_credentials())


@dataclass(frozen=True)
class FleetNamespace:
    """One namespace and the objects in it."""

    kubectl: Kubectl
    operator: Operator
    fleet: Path
    """The folder of the toy fleet: its objects in run.yaml, and one folder in volumes/ for each claim."""

    @contextmanager
    def opened(self) -> "Iterator[FleetNamespace]":
        """Open the namespace; close it at the end."""
        self.open()
        try:
            yield self
        finally:
            self.close()

    @contextmanager
    def served_by_its_own_operator(self, values: Mapping[str, Any] | None = None) -> "Iterator[FleetNamespace]":
        """The same with a release of its own in it, of these values: what is done to it disturbs nobody, so it needs no exclusive lock."""
        operator = Operator(self.kubectl, serves_its_namespace_alone=True)
        try:
            operator.upgrade(values)
            yield replace(self, operator=operator)
        finally:
            self.kubectl("delete", FFT, "--all", "--timeout=90s")  # by the operator that serves them
            operator.uninstall()

    def open(self) -> None:
        """Create the namespace, the store's Secret, the volumes and their claims."""
        keys = store_credentials()
        pair = {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": pair}
        self.open_empty()
        self.kubectl.apply(secret, *(self.claim(folder) for folder in self._folders()))

    def open_empty(self) -> None:
        """Create the namespace and the volumes; first wait until an earlier namespace of this name is gone."""
        self.kubectl("wait", "--for=delete", f"namespace/{self.name}", "--timeout=150s")
        self.kubectl.apply(namespace_manifest(self.name), *(self.volume(folder) for folder in self._folders()))

    def close(self) -> None:
        """Delete all of it, including the runs' objects in the store."""
        self.kubectl("delete", FFT, "--all", "--timeout=90s")
        self.kubectl("delete", "namespace", self.name, "--wait=false")
        self.kubectl("delete", "pv", f"--selector=fedpipe-test={self.name}", "--wait=false")
        store_at(f"runs/{self.name}").delete("")

    @property
    def name(self) -> str:
        """The namespace's name."""
        return self.kubectl.namespace

    def site(self, name: str, data: str = "", **spec: Any) -> Plain:
        """The manifest of a site of the toy fleet; `spec` replaces fields, `data` names the site whose rows it uses."""
        found = copy.deepcopy(self._document("EdgeSite", data or name))
        found["metadata"] = {"name": name, "labels": {"fedpipe-test": self.name} | self._labels()}
        found["spec"] |= {"capacity": {"cpu": 1, "memory": "2Gi"}, "nodeSelector": POOLS.get(name, {})} | spec
        return found

    def run(self, name: str = "toy", **spec: Any) -> Plain:
        """The manifest of the toy fleet's run; `spec` replaces fields."""
        found = copy.deepcopy(self._document("FederatedFineTune", "toy"))
        found["metadata"] = {"name": name, "labels": self._labels()}
        found["spec"]["store"] |= {"endpoint": store_endpoint(), "credentialsSecretRef": {"name": SECRET}}
        found["spec"] |= spec
        return found

    def volume(self, folder: Path) -> Plain:
        """The manifest of a volume in this folder, which the nodes share, for the claim of its name."""
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

    def claim(self, folder: Path, access: str = "ReadOnlyMany") -> Plain:
        """The manifest of that volume's claim."""
        size = {"requests": {"storage": "1Gi"}}
        spec = {"storageClassName": "", "accessModes": [access], "volumeName": f"{self.name}-{folder.name}", "resources": size}
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": folder.name}, "spec": spec}

    def start(self, *sites: str, name: str = "toy", **spec: Any) -> None:
        """Create these sites of the toy fleet and a run."""
        self.kubectl.apply(*(self.site(one) for one in sites), self.run(name, **spec))

    def get_run(self, name: str = "toy") -> Plain:
        """The run."""
        return self.kubectl.get(FFT, name)

    def get_site(self, name: str) -> Plain:
        """The site."""
        return self.kubectl.get(SITE, name)

    def wait(self, what: str, poll: Callable[[], Any], *, seconds: float = 900) -> Any:
        """Poll until the result is truthy and return it; a failure describes the namespace's objects."""
        return wait_until(poll, what, seconds=seconds, explain=self.explain)

    def wait_for_reason(self, reason: str, *, name: str = "toy", round_: int | None = None, seconds: float = 900) -> Plain:
        """Wait until the run's condition Ready has this reason, in this round; return the run."""

        def poll() -> Plain | None:
            body = self.get_run(name)
            current = condition(body, "Ready").get("reason")
            assert current == reason or not is_finished(body), f"{name} has ended: {current}\n{self.explain()}"
            return body if current == reason and round_ in (None, body["status"].get("round")) else None

        found: Plain = self.wait(f"{name} is {reason}{f' in round {round_}' if round_ else ''}", poll, seconds=seconds)
        return found

    def wait_until_complete(self, name: str = "toy", *, seconds: float = 1500) -> Plain:
        """Wait until the run is complete; return it."""

        def poll() -> Plain | None:
            body = self.get_run(name)
            assert condition(body, "Failed").get("status") != "True", f"{name} failed\n{self.explain()}"
            return body if condition(body, "Complete").get("status") == "True" else None

        found: Plain = self.wait(f"{name} is complete", poll, seconds=seconds)
        return found

    def job(self, name: str) -> Plain:
        """The Job with this name in its run."""
        found: Plain = next(job for job in self.kubectl.list("jobs", LABEL_RUN) if name_in_run(job["metadata"]["name"]) == name)
        return found

    def wait_for_trainer(self, job: str, *, seconds: float = 900) -> Plain:
        """Wait until a pod of the Job with this name in its run (`names.job`) runs; return it."""

        def poll() -> Plain | None:
            pods = [pod for pod in self.kubectl.list("pods", LABEL_RUN) if pod["metadata"]["name"].startswith(f"{job}-")]
            return next((pod for pod in pods if pod["status"]["phase"] == "Running"), None)

        found: Plain = self.wait(f"a pod of {job} runs", poll, seconds=seconds)
        return found

    def patch_run(self, name: str = "toy", **spec: Any) -> None:
        """Patch fields of the run's spec."""
        self.kubectl.patch(FFT, name, {"spec": spec})

    def events(self, kind: str, name: str) -> dict[str, str]:
        """The messages of an object's events by reason; the newest of each reason."""
        found = self.kubectl.list("events", fields=f"involvedObject.kind={kind},involvedObject.name={name}")
        return {one["reason"]: one.get("message", "") for one in sorted(found, key=lambda one: one["metadata"]["creationTimestamp"])}

    def store_of(self, run: Plain) -> S3Store:
        """The store under the run's prefix."""
        meta, spec = run["metadata"], run["spec"]
        return store_at(names.run_prefix(spec["store"]["prefix"], self.name, meta["name"], spec.get("continueFrom", meta["uid"])))

    def remaining_objects(self, run: Plain) -> list[str]:
        """The run's Jobs, Secrets and pods that still exist."""
        label = f"fedpipe.io/run-uid={run['metadata']['uid']}"
        found = [one for kind in ("jobs", "secrets", "pods") for one in self.kubectl.list(kind, label)]
        return [f"{one['kind']} {one['metadata']['name']}" for one in found]

    def explain(self) -> str:
        """The runs' conditions, Jobs, pods and the operator's log, for the message of a failed test."""
        parts = [_describe(run) for run in self._try(lambda: self.kubectl.list(FFT), [])]
        parts.append(self._try(lambda: self.kubectl("get", "jobs,pods", "-o", "wide"), "Jobs and pods cannot be read"))
        return "\n".join([*parts, "The end of the operator's log:", self.operator.log()])

    def _labels(self) -> dict[str, str]:
        """By which the operator of the namespace reconciles an object."""
        operator_class = self.operator.operator_class
        return {LABEL_OPERATOR_CLASS: operator_class} if operator_class else {}

    def _try(self, query: Callable[[], Any], default: Any) -> Any:
        try:
            return query()
        except KubectlError:
            return default

    def _document(self, kind: str, name: str) -> Plain:
        documents = yaml.safe_load_all((self.fleet / "run.yaml").read_text())
        found: Plain = next(one for one in documents if (one["kind"], one["metadata"]["name"]) == (kind, name))
        return found

    def _folders(self) -> list[Path]:
        return sorted((self.fleet / "volumes").iterdir())


OpenNamespace = Callable[[str], AbstractContextManager[FleetNamespace]]
"""Opens a namespace of this name and closes it at the end."""


def is_finished(run: Plain) -> bool:
    """Whether the run is complete or has failed."""
    return any(condition(run, kind).get("status") == "True" for kind in ("Complete", "Failed"))


def _describe(run: Plain) -> str:
    conditions = run.get("status", {}).get("conditions", [])
    lines = [f"  {one['type']}={one['status']} {one['reason']}: {one.get('message', '')}" for one in conditions]
    return "\n".join([f"{run['metadata']['name']}, round {run.get('status', {}).get('round')}:", *lines])
