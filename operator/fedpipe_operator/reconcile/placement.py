"""Where a trainer finds model and data, and what it may use: claims are mounts in a pod, and folders on one machine."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedpipe_operator import conversion
from fedpipe_operator.api import EdgeSite, parse_duration, parse_quantity
from fedpipe_operator.api.finetune import CLAIM_SCHEME
from fedpipe_operator.backend import JobResources
from fedpipe_operator.manifests.jobs import CACHE_FOLDER, DATA_FOLDER, MODEL_FOLDER
from fedpipe_operator.reconcile.tasks import TaskInputs, url_seconds
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials, Guard, credentials_in, model_in_bucket
from fedpipe_trainer.contract import Data, Model

_S3_SCHEME: Final = "s3://"


@dataclass(frozen=True)
class ClaimPlacement:
    """The `Placement` of a run. The functions give the folder of a claim's volume, as the trainer sees it."""

    model_folder: Callable[[str], str]
    data_folder: Callable[[str], str]
    cache_folder: Callable[[str, str], str]
    """The folder for one namespace in the volume of a claim."""
    credentials: Callable[[], Credentials]
    """The key pair for a model in a bucket: the one of the run's store. Raises as `credentials_in` if there is none."""
    guard: Guard | None = None
    """Which addresses such a bucket may have; None: any."""

    def inputs(self, run: Run, site: str) -> TaskInputs:
        """Where a trainer of this site finds model and data; site "" needs the model only."""
        return TaskInputs(model=self._model(run), data=self.data(site_of(run, site)) if site else None)

    def resources(self, run: Run, site: str) -> JobResources:
        """The site's claimed memory and cores, and its cache; no limits and no cache for the run's own tasks."""
        if not site:
            return JobResources()
        spec = site_of(run, site).spec
        capacity, claim = spec.capacity, spec.cache and spec.cache.persistent_volume_claim.claim_name
        return JobResources(
            memory_bytes=int(parse_quantity(capacity.memory)) if capacity.memory else None,
            cpus=max(1, int(parse_quantity(capacity.cpu))) if capacity.cpu else None,
            cache=self.cache_folder(claim, run.resource.metadata.namespace) if claim else None,
        )

    def _model(self, run: Run) -> Model:
        spec = run.spec
        loaded = {
            "attn_implementation": conversion.attention(spec.model.attn_implementation),
            "modules_to_save": spec.planning.modules_to_save,
        }
        return self._files(run).model_copy(update=loaded)

    def _files(self, run: Run) -> Model:
        source = run.spec.model.source
        if (claim := run.spec.model.claim) is not None:
            folder = source.removeprefix(CLAIM_SCHEME).removeprefix(f"{claim}/")
            # Quoted: a trainer would read %2E%2E in the path as the folder above the volume.
            return Model(source=Path(self.model_folder(claim), folder).as_uri())
        if source.startswith(_S3_SCHEME):
            seconds = url_seconds(parse_duration(run.spec.rounds.deadline))
            return model_in_bucket(source, run.store, seconds=seconds, credentials=self.credentials(), guard=self.guard)
        return Model(source=source)

    def data(self, site: EdgeSite) -> Data:
        """Where a trainer of this site finds its data."""
        data = site.spec.data
        folder = self.data_folder(data.volume.persistent_volume_claim.claim_name)
        return Data(train=f"{folder}/{data.train}", validation=f"{folder}/{data.validation}")


def in_pods(credentials: Credentials, guard: Guard | None) -> ClaimPlacement:
    """The placement on a cluster: every trainer pod mounts its claims at the same two paths."""
    return ClaimPlacement(
        lambda _claim: MODEL_FOLDER, lambda _claim: DATA_FOLDER, lambda _claim, _namespace: CACHE_FOLDER, lambda: credentials, guard
    )


def in_folders(volumes: Path) -> ClaimPlacement:
    """The placement on one machine: the claim `X` is the folder `<volumes>/X`, and the key pair is in the user's environment."""
    root = volumes.resolve()
    return ClaimPlacement(
        lambda claim: str(root / claim),
        lambda claim: str(root / claim),
        lambda claim, namespace: str(root / claim / namespace),
        lambda: credentials_in(os.environ),
    )


def site_of(run: Run, name: str) -> EdgeSite:
    """The run's site of this name."""
    return next(site for site in run.sites if site.name == name)
