"""Errors that a user can act on: one clear line and an exit code."""


class WatchnextError(Exception):
    """A failure explained in one line; the command line exits with 1."""

    exit_code = 1


class UsageError(WatchnextError):
    """Wrong use: an option, a key or an order of commands; exits with 2."""

    exit_code = 2


class InputError(WatchnextError):
    """Data that cannot be used: missing, malformed or out of range."""


class ArtifactError(WatchnextError):
    """A stage's folder is missing, incomplete or does not match."""
