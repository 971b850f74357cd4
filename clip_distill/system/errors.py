"""What goes wrong for a reason that a user can mend.

Each class is also the built-in exception that fits, so `except ValueError` and `except FileNotFoundError` work as well.
"""

from __future__ import annotations


class Error(Exception):
    """The base of them all; the message says what was expected, what was found, and the fix."""


class InvalidValue(Error, ValueError):
    """An argument, a file's content or a combination of them does not fit."""


class NotFound(Error, FileNotFoundError):
    """A file or folder is not there."""


class AlreadyExists(Error, FileExistsError):
    """Something that would be overwritten is there."""


class NotWritten(Error, OSError):
    """A file or folder could not be written; what was there before is there still."""


class OutOfMemory(Error, MemoryError):
    """A GPU's memory is not enough; the message says which batch fits."""


class WorkerFailed(Error, RuntimeError):
    """A process that prepares batches died, or stays at one file; the message says which."""


class MissingPackage(Error, ImportError):
    """A package of an extra is not installed."""
