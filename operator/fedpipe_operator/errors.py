"""The operator's two kinds of error. Every backend and store translates what it meets into one of them.

Either a retry may help (`TransientError`; kopf calls it temporary), or a person must act (`UserError`; kopf: permanent). Both carry a
CamelCase reason, which becomes a condition's reason, and a message that says what is wrong, where, and what to do.
"""

from typing import Final

OPERATOR_FAULT: Final = "OperatorFault"
"""The reason of what the operator did not expect: it is retried like a transient error."""


class FedPipeError(Exception):
    """What the operator raises on purpose. `reason` is one CamelCase word, `message` a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.is_of_one_object = False
        """Whether the API server's answer is about one object, so that what concerns others may be tried all the same."""


class TransientError(FedPipeError):
    """No connection, a server error, a timeout, throttling: the same call may succeed later."""


class UserError(FedPipeError):
    """A full store, a wrong key, a missing bucket: retrying changes nothing until a person corrects it."""
