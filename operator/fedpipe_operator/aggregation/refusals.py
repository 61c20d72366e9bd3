"""Why the gate refuses an update: each reason spelled once, with a sentence for people."""

from typing import Final

NO_ADAPTER: Final = "NoAdapter"
WRONG_RUN: Final = "WrongRun"
WRONG_ROUND: Final = "WrongRound"
WRONG_SITE: Final = "WrongSite"
WRONG_ATTEMPT: Final = "WrongAttempt"
WRONG_BASE: Final = "WrongBase"
NO_SAMPLES: Final = "NoSamples"
WRONG_RANK: Final = "WrongRank"
WRONG_SCALE: Final = "WrongScale"
HASH_MISMATCH: Final = "HashMismatch"
MALFORMED: Final = "Malformed"
UNKNOWN_KEY: Final = "UnknownKey"
MISSING_KEY: Final = "MissingKey"
WRONG_SHAPE: Final = "WrongShape"
WRONG_DTYPE: Final = "WrongDtype"
NOT_FINITE: Final = "NotFinite"
NORM_TOO_LARGE: Final = "NormTooLarge"

REASONS: Final[dict[str, str]] = {
    NO_ADAPTER: "The result reports no completed training with an adapter.",
    WRONG_RUN: "The result belongs to another run.",
    WRONG_ROUND: "The result belongs to another round.",
    WRONG_SITE: "The result belongs to another site, or to one that has no plan in this round.",
    WRONG_ATTEMPT: "The result belongs to another attempt.",
    WRONG_BASE: "The update was made on another base model.",
    NO_SAMPLES: "The site trained on no samples, so that its update has no weight.",
    WRONG_RANK: "The ranks are not the planned ones.",
    WRONG_SCALE: "The scales before B·A are not the planned ones.",
    HASH_MISMATCH: "The adapter's bytes are not those that the result vouches for.",
    MALFORMED: "The adapter is not a whole safetensors file.",
    UNKNOWN_KEY: "The adapter holds a tensor that the plan does not name.",
    MISSING_KEY: "The adapter lacks a tensor that the plan names.",
    WRONG_SHAPE: "A tensor has not the planned shape.",
    WRONG_DTYPE: "A tensor is not float32.",
    NOT_FINITE: "A tensor holds NaN or an infinity.",
    NORM_TOO_LARGE: "The update moves the model further than the bound allows.",
}
