"""Errors that a user of P4Q Edge can meet, and the exit code of each.

Every message says what was expected, what came, and the next command::

    P4QEdgeError                    1   something failed while running
    |-- UsageError                  2   a wrong argument, recipe key or path
    |   `-- InputError              2   an input (image, class list, data set) that cannot be used
    |-- EnvironmentNotAbleError     3   a library, driver, device or network is missing
    |-- ArtifactError               4   a bundle, card, head or engine that must not be used here
    |   |-- CorruptArtifactError    4   bytes that differ from their recorded digest or format
    |   `-- IncompatibleEngineError 4   built for another runtime version, GPU, platform or card
    |-- QualityGateError            5   accuracy, parity or self-test below its gate
    `-- ProcessLostError            1   another process of the same run ended, or never came

Programming errors stay builtin (TypeError, ValueError, AssertionError).
"""


class P4QEdgeError(Exception):
    """Root of all errors that P4Q Edge raises on purpose.

    Attributes:
        names_process: whether the message says which of several processes it is of.
    """

    exit_code = 1
    names_process = False


class UsageError(P4QEdgeError):
    """A wrong argument, recipe key, suffix or path."""

    exit_code = 2


class InputError(UsageError):
    """An image, class list or data set that cannot be used."""


class EnvironmentNotAbleError(P4QEdgeError):
    """A library, driver, device or network that the request needs is missing."""

    exit_code = 3


class ArtifactError(P4QEdgeError):
    """A bundle, card, head or engine that must not be used here."""

    exit_code = 4


class CorruptArtifactError(ArtifactError):
    """Bytes that differ from their recorded digest, or from the format."""


class IncompatibleEngineError(ArtifactError):
    """An engine built for another runtime version, GPU, platform or card."""


class QualityGateError(P4QEdgeError):
    """Accuracy, parity or self-test below its gate."""

    exit_code = 5


class ProcessLostError(P4QEdgeError):
    """Another of the processes that torchrun started for the same run ended, or never came."""
