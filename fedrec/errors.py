"""The one tree of errors.

    FedrecError
    ├── ConfigError     a config, option or command line says something that is not allowed
    ├── DataError       a file or array of interactions, items or texts is malformed
    ├── PrivacyError    going on would break, or has broken, a privacy claim
    └── ProtocolError   a message, checkpoint or peer does not hold to the protocol

Every message says what was found, what is allowed and what to do.
"""

from __future__ import annotations


class FedrecError(Exception):
    """Anything this library raises on purpose; the CLI prints it as one line and exits with code 2."""


class ConfigError(FedrecError):
    """A config, option or command line says something that is not allowed."""


class DataError(FedrecError):
    """A file or array of interactions, items or texts is malformed."""


class PrivacyError(FedrecError):
    """Going on would break, or has broken, a privacy claim."""


class ProtocolError(FedrecError):
    """A message, checkpoint or peer does not hold to the protocol."""
