"""A base model in a bucket, as a task names it: a presigned URL for each of its files, as a trainer has no credentials."""

import re
from hashlib import sha256

from fedpipe_operator.api import StoreSpec
from fedpipe_operator.errors import FedPipeError, UserError
from fedpipe_operator.store.connections import Guard
from fedpipe_operator.store.s3 import Credentials, S3Store
from fedpipe_trainer.contract import Model
from fedpipe_trainer.contract.task import ETAG_PATTERN

_SCHEME = "s3://"
_CONFIG = "config.json"
_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""The files that are read when a model is loaded. Weights in other formats (.bin, .gguf, onnx/) are ignored."""


def model_in_bucket(source: str, store: StoreSpec, *, seconds: int, credentials: Credentials, guard: Guard | None) -> Model:
    """The model at `s3://bucket/folder`, with URLs that are valid for `seconds`.

    The bucket is on the endpoint of the run's `store`, and the run's own key pair lists it and signs the URLs: what the pair does not
    open, the run does not get.

    Raises:
        UserError: `ModelMissing`, the folder holds no model; or an error of `S3Store`.
        TransientError: the bucket is not reachable.
    """
    bucket, _, folder = source.removeprefix(_SCHEME).partition("/")
    try:
        models = S3Store(
            bucket,
            folder,
            credentials=credentials,
            endpoint=store.endpoint,
            trainer_endpoint=store.trainer_endpoint,
            region=store.region,
            guard=guard,
        )
        found = {key: one for key, one in models.etags_and_sizes().items() if "/" not in key and key.endswith(_SUFFIXES)}
        if _CONFIG not in found:
            raise UserError("ModelMissing", f"{models.location}: there is no {folder.rstrip('/')}/{_CONFIG}; copy the model's folder there")
        files = {key: models.url_to_read(key, seconds) for key in found}
    except FedPipeError as error:
        raise type(error)(error.reason, f"spec.model.source {source}: {error.message}") from error
    # With the endpoint: another one may have a bucket of this name, and say what it likes of its objects. Sites keep models by revision.
    named = (store.endpoint, sorted((key, etag) for key, (etag, _) in found.items()))
    revision = sha256(repr(named).encode()).hexdigest()
    etags = {key: bare for key, (etag, _) in found.items() if re.fullmatch(ETAG_PATTERN, bare := etag.strip('"'))}
    return Model(source=source, files=files, sizes={key: size for key, (_, size) in found.items()}, etags=etags, revision=revision)
