"""How a trainer ends: the exit codes a Job's failure policy acts on, and the reasons a person reads."""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """The trainer's exit status. Codes 2 to 9 are final: another attempt at the same task would end the same."""

    OK = 0
    UNEXPECTED = 1
    BAD_TASK = 2
    BAD_DATA = 3
    BAD_MODEL = 4
    OUT_OF_MEMORY = 5
    DIVERGED = 6
    TRANSFER_FAILED = 10
    TERMINATED = 143

    @property
    def is_final(self) -> bool:
        """Whether a further attempt is pointless (the input is wrong, not the weather)."""
        return ExitCode.BAD_TASK <= self < ExitCode.TRANSFER_FAILED


class FailureReason(StrEnum):
    """Why a task failed, in one CamelCase word; the result's message says the rest."""

    UNEXPECTED = "Unexpected"
    BAD_TASK = "BadTask"
    BAD_DATA = "BadData"
    BAD_MODEL = "BadModel"
    OUT_OF_MEMORY = "OutOfMemory"
    DIVERGED = "Diverged"
    TRANSFER_FAILED = "TransferFailed"
    TERMINATED = "Terminated"

    @property
    def exit_code(self) -> ExitCode:
        """The exit status that goes with this reason."""
        return ExitCode[self.name]
