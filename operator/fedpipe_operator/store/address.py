"""The address of a store as data, from which a worker process opens the same store. Credentials come from the environment only."""

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
    """A prefix in a bucket. boto3 finds the credentials in the environment."""

    kind: Literal["s3"] = "s3"
    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str = "us-east-1"

    @property
    def url(self) -> str:
        """The prefix as S3 tools write it."""
        return f"s3://{self.bucket}/{self.prefix}"


StoreAddress = Annotated[DirectoryAddress | BucketAddress, Field(discriminator="kind")]


def open_store(address: DirectoryAddress | BucketAddress, credentials: Credentials | None = None) -> Store:
    """The store at this address. Without `credentials`, boto3 finds those of a bucket."""
    if isinstance(address, DirectoryAddress):
        return DirectoryStore(Path(address.root))
    return S3Store(address.bucket, address.prefix, endpoint=address.endpoint, region=address.region, credentials=credentials)


def subfolder(address: DirectoryAddress | BucketAddress, folder: str) -> DirectoryAddress | BucketAddress:
    """The address of a folder in the store."""
    if isinstance(address, DirectoryAddress):
        return address.model_copy(update={"root": str(Path(address.root) / folder)})
    return address.model_copy(update={"prefix": f"{address.prefix}/{folder}"})
