"""The address of a store as data, from which a worker process opens the same store. A key pair is never part of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedpipe_operator.errors import UserError
from fedpipe_operator.store.connections import Guard
from fedpipe_operator.store.directory import DirectoryStore
from fedpipe_operator.store.protocol import Store
from fedpipe_operator.store.s3 import Credentials, S3Store, credentials_in
from fedpipe_trainer.contract import Wire


class DirectoryAddress(Wire):
    """A folder of this machine."""

    kind: Literal["directory"] = "directory"
    root: str


class BucketAddress(Wire):
    """A prefix in a bucket."""

    kind: Literal["s3"] = "s3"
    bucket: str
    prefix: str
    endpoint: str | None = None
    trainer_endpoint: str | None = None
    """By which trainers reach the store; None: `endpoint`."""
    region: str = "us-east-1"
    api_servers: tuple[str, ...] | None = None
    """On a cluster: where its API server is (`addresses.parse_api_server`), to which no connection is made, nor to any other address that
    `addresses` refuses. None on one machine: its user names the endpoint, and any address will do."""

    @property
    def url(self) -> str:
        """The prefix as S3 tools write it."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def guard(self) -> Guard | None:
        """Which addresses may be connected to; None: any."""
        return None if self.api_servers is None else Guard(self.api_servers)


StoreAddress = Annotated[DirectoryAddress | BucketAddress, Field(discriminator="kind")]


def open_store(address: DirectoryAddress | BucketAddress, credentials: Credentials | None) -> Store:
    """The store at this address; a folder needs no credentials.

    Raises:
        UserError: `CredentialsMissing`, a bucket without a key pair; or what opening the store raises.
    """
    if isinstance(address, DirectoryAddress):
        return DirectoryStore(Path(address.root))
    if credentials is None:
        raise UserError("CredentialsMissing", f"there is no key pair for {address.url}: name a Secret with one in the run's spec.store")
    return S3Store(
        address.bucket,
        address.prefix,
        credentials=credentials,
        endpoint=address.endpoint,
        trainer_endpoint=address.trainer_endpoint,
        region=address.region,
        guard=address.guard,
    )


def credentials_for(address: DirectoryAddress | BucketAddress, environ: Mapping[str, str]) -> Credentials | None:
    """The key pair in these environment variables, if the store needs one. Raises like `credentials_in`."""
    return credentials_in(environ) if isinstance(address, BucketAddress) else None


def subfolder(address: DirectoryAddress | BucketAddress, folder: str) -> DirectoryAddress | BucketAddress:
    """The address of a folder in the store."""
    if isinstance(address, DirectoryAddress):
        return address.model_copy(update={"root": str(Path(address.root) / folder)})
    return address.model_copy(update={"prefix": f"{address.prefix}/{folder}"})
