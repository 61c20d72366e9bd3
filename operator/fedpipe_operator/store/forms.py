"""Presigned forms (S3's POST policies): they bind how large an object may be, which a presigned PUT does not.

Not every S3 store has them, and some take them without keeping to their policy. So a store is asked, by trying.
"""

import logging
import re
from typing import TYPE_CHECKING, Final

from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError
from urllib3 import encode_multipart_formdata

from fedpipe_operator.store.connections import send
from fedpipe_trainer.contract import PostForm

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_LOG: Final = logging.getLogger(__name__)
_PROBE_SECONDS: Final = 300
_PROBE_BYTES: Final = 1
_CODE: Final = re.compile(rb"<Code>\s*(\w{1,64})\s*</Code>")
_OK: Final = range(200, 300)
_UNKNOWN_METHOD: Final = 501
_SERVER_ERRORS: Final = range(500, 600)


def presigned_form(client: "S3Client", bucket: str, key: str, *, seconds: int, at_most: int) -> PostForm:
    """A form that writes this object, of at most so many bytes, and is valid for `seconds`."""
    made = client.generate_presigned_post(bucket, key, Conditions=[["content-length-range", 0, at_most]], ExpiresIn=seconds)
    return PostForm(url=made["url"], fields=made["fields"])


def binds_sizes(client: "S3Client", bucket: str, key: str) -> bool:
    """Whether the store takes a form, and refuses what is larger than the form allows.

    The object `key` is written for it, and deleted if the key pair may delete.

    Raises:
        ClientError: the store has a fault of its own, so that nothing is known; and what a call of the client raises.
    """
    form = presigned_form(client, bucket, key, seconds=_PROBE_SECONDS, at_most=_PROBE_BYTES)
    ignores_policy = _is_taken(client, form, bytes(_PROBE_BYTES + 1))
    takes_forms = ignores_policy or _is_taken(client, form, bytes(_PROBE_BYTES))
    if takes_forms:
        _delete(client, bucket, key)
    return takes_forms and not ignores_policy


def _delete(client: "S3Client", bucket: str, key: str) -> None:
    """A run needs no right to delete, unless its `deletionPolicy` is Delete: without it, a byte stays in the bucket."""
    try:
        client.delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in _SERVER_ERRORS:
            raise
        _LOG.info("%s stays in the bucket %s, since the run's key pair may not delete it", key, bucket)


def _is_taken(client: "S3Client", form: PostForm, content: bytes) -> bool:
    """Whether the store accepts this content by the form."""
    body, content_type = encode_multipart_formdata([*form.fields.items(), ("file", ("probe", content))])
    answer = send(client, AWSRequest("POST", form.url, {"Content-Type": content_type}, body).prepare())
    if answer.status_code in _SERVER_ERRORS and answer.status_code != _UNKNOWN_METHOD:
        found = _CODE.search(answer.content)
        code = found[1].decode() if found else str(answer.status_code)
        response = {"Error": {"Code": code, "Message": "no answer to a form"}, "ResponseMetadata": {"HTTPStatusCode": answer.status_code}}
        raise ClientError(response, "PostObject")  # type: ignore[arg-type]  # as much of a response as is read of an error
    return answer.status_code in _OK
