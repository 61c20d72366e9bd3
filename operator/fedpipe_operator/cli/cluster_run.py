"""A run on a cluster, as the commands see it: its object by the user's kubeconfig, and its store by the key pair in the run's Secret."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from fedpipe_operator.api import FederatedFineTune, StoreStatus
from fedpipe_operator.cluster.api import RUNS, Api, of_kubeconfig
from fedpipe_operator.cluster.credentials import credentials_of
from fedpipe_operator.cluster.objects import read_body
from fedpipe_operator.errors import UserError
from fedpipe_operator.manifests.jobs import CREDENTIALS
from fedpipe_operator.rounds.status import stored_at
from fedpipe_operator.store import Credentials, Store
from fedpipe_operator.store.address import BucketAddress, open_store
from fedpipe_operator.store.s3 import credentials_in

Name = Annotated[str, typer.Argument(help="The FederatedFineTune.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Its namespace; default: that of the kubeconfig's context.")]
OfCluster = Annotated[str | None, typer.Option("--namespace", "-n", help="The run is on a cluster, in this namespace; give its name only.")]
Context = Annotated[str | None, typer.Option(help="The context of the kubeconfig; default: the current one.")]
Endpoint = Annotated[
    str | None,
    typer.Option(help="URL of the store as this machine reaches it, where status.store.endpoint is the cluster's own."),
]


_NOT_YET: Final = (
    "{0}/{1} names no store in its spec, and its status.store is empty: the operator writes it there when it first takes up the run;"
    " fedpipe status {1} -n {0} says what the run waits for"
)
_NEEDED: Final = (
    f"set {' and '.join(CREDENTIALS)} to a key pair of your own that may list and read there, or read the report that the operator serves"
    " (docs/report.md), which needs no key pair"
)


@dataclass(frozen=True)
class ClusterRun:
    """A run that exists on a cluster."""

    api: Api
    resource: FederatedFineTune

    @property
    def namespace(self) -> str:
        """The run's namespace."""
        return self.resource.metadata.namespace

    @property
    def name(self) -> str:
        """The run's name."""
        return self.resource.metadata.name

    def newest(self) -> "ClusterRun":
        """The run as it is now.

        Raises:
            UserError: `RunMissing`, it was deleted; `SpecInvalid`; or what the API raises, as `TransientError` does.
        """
        return ClusterRun(self.api, _resource(self.api, self.namespace, self.name))

    def open_store(self, endpoint: str | None) -> Store:
        """The run's store; by this endpoint, if the one that the operator uses is not reachable from here.

        Raises:
            UserError: `StoreMissing`, `StoreForbidden`; or what `credentials_of` and the store raise.
        """
        at = self.resource.status.store or stored_at(self.resource)
        if at is None:
            raise UserError("StoreMissing", _NOT_YET.format(self.namespace, self.name))
        address = BucketAddress(bucket=at.bucket, prefix=at.prefix, endpoint=endpoint or at.endpoint, region=at.region)
        return open_store(address, self._credentials(at, address.url))

    def _credentials(self, at: StoreStatus, url: str) -> Credentials:
        """The key pair in the run's Secret or, where there is none or the user may not read it, the user's own in the environment."""
        own = credentials_in(os.environ) if all(os.environ.get(name) for name in CREDENTIALS) else None
        if at.credentials_secret_ref is None:
            if own is None:
                raise UserError("StoreForbidden", f"the operator opens {url} by a role of its own (docs/store-identity.md): {_NEEDED}")
            return own
        try:
            return credentials_of(at.credentials_secret_ref, self.namespace, self.api)
        except UserError as error:
            if error.reason != "ApiForbidden":
                raise
            if own is not None:
                return own
            secret = f"the Secret {self.namespace}/{at.credentials_secret_ref.name}, whose key pair opens {url}"
            advice = f"ask an admin of the namespace for the right to get it, or {_NEEDED}"
            raise UserError("StoreForbidden", f"your user may not read {secret}: {advice}") from error


def find_run(name: str, namespace: str | None, context: str | None) -> ClusterRun:
    """The run of this name.

    Raises:
        UserError: `KubeconfigInvalid`, `RunMissing`, `SpecInvalid`; or what the API raises.
    """
    found = of_kubeconfig(context)
    return ClusterRun(found.api, _resource(found.api, namespace or found.namespace, name))


def _resource(api: Api, namespace: str, name: str) -> FederatedFineTune:
    body = api.get(RUNS, namespace, name)
    if body is None:
        raise UserError("RunMissing", f"there is no FederatedFineTune {name} in the namespace {namespace}: kubectl get fft -A lists them")
    resource = read_body(body, FederatedFineTune)
    if isinstance(resource, list):
        raise UserError("SpecInvalid", f"{namespace}/{name}: {'; '.join(resource)}")
    return resource


def name_of(paths: Sequence[Path]) -> str:
    """The name of a run, given where files are expected. Exits with status 2 if there are several."""
    if len(paths) != 1:
        typer.echo("with --namespace, give the name of one run", err=True)
        raise typer.Exit(2)
    return str(paths[0])
