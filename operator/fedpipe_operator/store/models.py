"""A base model that lies in a bucket, as a task names it: a URL for each of its files, since a trainer has no key to the bucket."""

from hashlib import sha256

from fedpipe_operator.errors import FedPipeError, UserError
from fedpipe_operator.store.s3 import Credentials, S3Store
from fedpipe_trainer.contract import Model

_SCHEME = "s3://"
_CONFIG = "config.json"
_KINDS = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""What loading a model reads; weights of other formats beside it (.bin, .gguf, onnx/) are left where they are."""


def model_in_bucket(source: str, *, endpoint: str | None, region: str, seconds: int, credentials: Credentials | None = None) -> Model:
    """The model at `s3://bucket/folder`, its URLs valid for so many seconds. Without credentials, boto3 finds them.

    Raises:
        UserError: `ModelMissing`, the folder holds no model; or what the bucket says of the bucket.
        TransientError: the bucket cannot be reached.
    """
    bucket, _, folder = source.removeprefix(_SCHEME).partition("/")
    try:
        store = S3Store(bucket, folder, endpoint=endpoint, region=region, credentials=credentials)
        etags = {key: etag for key, etag in store.etags().items() if "/" not in key and key.endswith(_KINDS)}
        if _CONFIG not in etags:
            raise UserError("ModelMissing", f"{store.place}: there is no {folder.rstrip('/')}/{_CONFIG}; copy the model's folder there")
        files = {key: store.url_to_read(key, seconds) for key in etags}
    except FedPipeError as error:
        raise type(error)(error.reason, f"spec.model.source {source}: {error.message}") from error
    return Model(source=source, files=files, revision=sha256(repr(sorted(etags.items())).encode()).hexdigest())
