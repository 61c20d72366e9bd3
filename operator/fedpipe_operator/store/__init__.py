"""The run's objects: in a directory of this machine, or in a bucket of any S3 endpoint.

`Store` is the interface; nothing outside this package depends on which of the two it is. Keys are relative to the run
(`rounds/0001/plan.json`), and a key that could leave the run's folder is refused.
"""

from fedpipe_operator.store.connections import Guard
from fedpipe_operator.store.directory import DirectoryStore
from fedpipe_operator.store.models import model_in_bucket
from fedpipe_operator.store.protocol import Reader, Store
from fedpipe_operator.store.s3 import Credentials, S3Store, credentials_in

__all__ = ["Credentials", "DirectoryStore", "Guard", "Reader", "S3Store", "Store", "credentials_in", "model_in_bucket"]
