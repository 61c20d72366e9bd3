"""The only door to objects: a directory of this machine, or a bucket of any S3 endpoint.

`Store` says what both can do; nothing outside this room knows which one it has. Keys are relative to the run
(`rounds/0001/plan.json`) and are refused when they try to leave it.
"""

from fedpipe_operator.store.directory import DirectoryStore
from fedpipe_operator.store.models import model_in_bucket
from fedpipe_operator.store.protocol import Reader, Store
from fedpipe_operator.store.s3 import Credentials, S3Store

__all__ = ["Credentials", "DirectoryStore", "Reader", "S3Store", "Store", "model_in_bucket"]
