"""Which store, as data: what a worker process is told so that it opens the same one. Credentials come by environment, never here."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedpipe_operator.store.directory import DirectoryStore
from fedpipe_operator.store.protocol import Store
from fedpipe_operator.store.s3 import Credentials, S3Store
from fedpipe_trainer.contract import Wire


class DirectoryAddress(Wire):
    """A folder of this machine."""

    kind: Literal["directory"] = "directory"
    root: str


class BucketAddress(Wire):
    """A bucket; the key pair is in the environment, where boto3 finds it."""

    kind: Literal["s3"] = "s3"
    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str = "us-east-1"

    @property
    def url(self) -> str:
        """The folder as people and S3's tools write it."""
        return f"s3://{self.bucket}/{self.prefix}"


StoreAddress = Annotated[DirectoryAddress | BucketAddress, Field(discriminator="kind")]


def open_store(address: DirectoryAddress | BucketAddress, credentials: Credentials | None = None) -> Store:
    """The store at this address; without credentials, a bucket's are found as boto3 finds them."""
    if isinstance(address, DirectoryAddress):
        return DirectoryStore(Path(address.root))
    return S3Store(address.bucket, address.prefix, endpoint=address.endpoint, region=address.region, credentials=credentials)


def below(address: DirectoryAddress | BucketAddress, folder: str) -> DirectoryAddress | BucketAddress:
    """The same store, seen from a folder in it."""
    if isinstance(address, DirectoryAddress):
        return address.model_copy(update={"root": str(Path(address.root) / folder)})
    return address.model_copy(update={"prefix": f"{address.prefix}/{folder}"})
