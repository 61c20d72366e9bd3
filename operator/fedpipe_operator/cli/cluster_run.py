"""A run on a cluster, as the commands see it: its object by the user's kubeconfig, and its store by the key pair in the run's Secret."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fedpipe_operator import names
from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.cluster.api import RUNS, Api, of_kubeconfig
from fedpipe_operator.cluster.credentials import credentials_of
from fedpipe_operator.cluster.objects import read_body
from fedpipe_operator.errors import UserError
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Store
from fedpipe_operator.store.address import BucketAddress, open_store

Name = Annotated[str, typer.Argument(help="The FederatedFineTune.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Its namespace; default: that of the kubeconfig's context.")]
OfCluster = Annotated[str | None, typer.Option("--namespace", "-n", help="The run is on a cluster, in this namespace; give its name only.")]
Context = Annotated[str | None, typer.Option(help="The context of the kubeconfig; default: the current one.")]
Endpoint = Annotated[
    str | None, typer.Option(help="URL of the store as this machine reaches it, where spec.store.endpoint is one of the cluster's network.")
]


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
        """The run's store; by this endpoint, if the spec's is not reachable from here.

        Raises:
            UserError: what `credentials_of` and the store raise.
        """
        run = Run(self.resource, ())
        store, meta = run.store, self.resource.metadata
        prefix = names.run_prefix(store.prefix, meta.namespace, meta.name, meta.uid)
        address = BucketAddress(bucket=store.bucket, prefix=prefix, endpoint=endpoint or store.endpoint, region=store.region)
        return open_store(address, credentials_of(run, self.api))


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
