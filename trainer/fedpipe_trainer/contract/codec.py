"""How the tensors of an update, or of a global adapter, travel: the codec, and how far what arrives may be from what was sent."""

from typing import Annotated, Final

from pydantic import Field

from fedpipe_trainer.contract.base import Wire

IDENTITY: Final = "Identity"
"""The name of tensors that travel as they are, in float32."""
CodecName = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]{0,31}$")]


class Codec(Wire):
    """Of a run: `fedpipe_trainer.codecs` says what the names mean."""

    type: CodecName = IDENTITY
    """Of the updates."""
    downlink: CodecName = IDENTITY
    """Of the global adapter that the sites read."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 4
    """Components that LowRank keeps of each factor's increment."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Of the values of each tensor's increment that TopK keeps."""
    error_feedback: bool = True
    """Whether a site adds what earlier rounds lost to its next update."""
    min_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.9
    """Between the increment of a tensor and what is decoded of it: below, the next better codec is used for it."""
    max_relative_error: Annotated[float, Field(gt=0, le=10)] = 0.5
    """Likewise ‖decoded − increment‖ / ‖increment‖: above, the next better codec is used."""

    @property
    def is_plain(self) -> bool:
        """Whether everything travels as it is."""
        return self.type == IDENTITY and self.downlink == IDENTITY
