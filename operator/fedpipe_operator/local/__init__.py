"""The door onto this machine: a site's work in a process of its own. For `fedpipe run` and for tests."""

from fedpipe_operator.local.door import LocalDoor, ProcessSettings

__all__ = ["LocalDoor", "ProcessSettings"]
