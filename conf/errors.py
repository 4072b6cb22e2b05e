"""The one root of every error this suite raises, and the exit code each kind of failure has."""

from __future__ import annotations

EXIT_OK = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 3
EXIT_BACKEND = 4
EXIT_INTERNAL = 5


class SecureSlurmError(Exception):
    """Something that a person must be told of.

    ``str(error)`` is what happened, ``advice`` what to do next (may be empty). Neither ever holds a secret.
    """

    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class Refused(SecureSlurmError):
    """The policy says no. ``rule`` is the stable id of the rule that said it."""

    exit_code = EXIT_REFUSED

    def __init__(self, rule: str, message: str, *, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.rule = rule


class UsageError(SecureSlurmError):
    """The command line makes no sense."""

    exit_code = EXIT_USAGE


class ConfigError(SecureSlurmError):
    """A file that an admin wrote is unsafe, missing or wrong."""

    exit_code = EXIT_CONFIG


class BackendUnavailable(SecureSlurmError):
    """Vault, LDAP, Slurm or a daemon of ours did not answer: trying again may help."""

    exit_code = EXIT_BACKEND


class InternalError(SecureSlurmError):
    """A state that the code says cannot be; a defect of ours or a broken node."""
