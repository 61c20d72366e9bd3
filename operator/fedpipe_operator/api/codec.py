"""`spec.codec` of a `FederatedFineTune`: how updates and global adapters travel."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from fedpipe_operator.api.meta import ApiModel


class CodecType(StrEnum):
    """How the tensors of an update are encoded: the increment of each from the global adapter that its site started from."""

    IDENTITY = "Identity"
    """As they are, in float32."""
    FLOAT16 = "Float16"
    """As half-precision numbers: half of the bytes."""
    INT8 = "Int8"
    """As integers of 8 bits with a scale for each 128 values: 26 % of the bytes."""
    INT4 = "Int4"
    """As integers of 4 bits with a scale for each 128 values: 13 % of the bytes."""
    LOW_RANK = "LowRank"
    """Of each factor's increment the `rank` largest components."""
    TOP_K = "TopK"
    """Of each tensor's increment the values of largest size, `fraction` of all."""


class DownlinkCodec(StrEnum):
    """How the tensors of the global adapter are encoded for the sites; the store keeps it in float32 as well."""

    IDENTITY = "Identity"
    """As they are, in float32."""
    FLOAT16 = "Float16"
    """As half-precision numbers."""
    INT8 = "Int8"
    """As integers of 8 bits with a scale for each 128 values."""


_TYPES_WITH: Final = {"rank": CodecType.LOW_RANK, "fraction": CodecType.TOP_K}
"""The type that reads a field; the others refuse it."""


class CodecSpec(ApiModel):
    """How updates and global adapters travel. A tensor of which a codec would lose too much is sent by the next better one."""

    type: CodecType = CodecType.IDENTITY
    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Of LowRank. Left out: 4."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of TopK. Left out: 0.05."""
    error_feedback: bool = True
    """A site keeps what was lost of its update on its cache volume, and adds it to its next one."""
    min_cosine: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Between a tensor's increment and what is decoded of it. Below, the next better codec is used for that tensor."""
    max_relative_error: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Likewise the length of the difference over that of the increment. Above, the next better codec is used for that tensor."""
    downlink: DownlinkCodec = DownlinkCodec.IDENTITY

    @model_validator(mode="after")
    def _refuse_fields_of_other_types(self) -> "CodecSpec":
        for field, owner in _TYPES_WITH.items():
            if getattr(self, field) is not None and self.type is not owner:
                raise ValueError(f"{to_camel(field)} belongs to {owner.value}: leave it out, or change the type")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether everything travels as it is."""
        return self.type is CodecType.IDENTITY and self.downlink is DownlinkCodec.IDENTITY
