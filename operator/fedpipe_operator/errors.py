"""The operator's two kinds of failure. Every door translates what the world throws into one of them.

Either waiting may help (`TransientError`), or a person must mend something (`UserError`). Both carry a CamelCase
reason, which becomes a condition's reason, and a message that says what is wrong, where, and what to do.
"""


class FedPipeError(Exception):
    """What the operator raises on purpose. `reason` is one CamelCase word, `message` a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class TransientError(FedPipeError):
    """Weather: no connection, a server error, a timeout, throttling. The same call may succeed later."""


class UserError(FedPipeError):
    """A person must mend this: a full store, a wrong key, a missing bucket. Trying again changes nothing."""
