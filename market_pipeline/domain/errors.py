"""The errors that this project raises on purpose, as one tree.

PipelineError
├── SettingError                 an environment variable or run setting is wrong
├── MarketNotServedError         no configured provider has a market
├── NothingIngestedError         a run ended without one usable market
├── SupersededError              another run took over a market while this one was paused
├── ClaimTimeoutError            another run kept a market longer than this one waits
├── KeyReusedError               another request used the same Idempotency-Key
├── HistoryRequestError          a question about stored history has no answer
│   ├── UnknownMarketError       no stored market has the name
│   ├── NothingKnownYetError     nothing was known at the given time, although it is known now
│   └── IncompleteHistoryError   complete history was required, and bars are missing
├── ProviderError                a provider did not answer as it should
│   ├── TransientProviderError   worth another try: timeout, 429, 5xx
│   └── PermanentProviderError   will fail again: 401, 404, malformed payload
└── StorageError                 the database refused, is missing, or is too old
    ├── DatabaseUnreachableError
    ├── ReadOnlyDatabaseError
    ├── SchemaOutdatedError
    ├── WrongClockError          this machine and the database do not agree about the time
    └── EmbeddedServerError      the embedded PostgreSQL could not be started

Each message says what was being done, with which value (never a secret), and what to do next.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any


class PipelineError(Exception):
    """Base of all errors raised on purpose."""


class SettingError(PipelineError):
    """A setting is wrong; the message names it, its value and what is accepted."""


class MarketNotServedError(PipelineError):
    """No provider in the list serves a symbol; the message gives the reason of each provider."""


class NothingIngestedError(PipelineError):
    """A run ended without one usable market; the message lists each with its reason."""


class SupersededError(PipelineError):
    """Another run claimed the market in the meantime; this run wrote nothing."""


class HistoryRequestError(PipelineError):
    """A question about stored history has no answer; the message says what there is."""


class UnknownMarketError(HistoryRequestError):
    """No stored market has the name; the message names every unknown one."""


class NothingKnownYetError(HistoryRequestError):
    """All bars came after the given time; the message says when the first one came."""


class IncompleteHistoryError(HistoryRequestError):
    """Complete history was required, and bars are missing.

    Args:
        message: What is missing, why, and what would bring it.
        missing: Each span that is missing or doubtful: symbol, provider, interval, starts_at and
            ends_at (ISO 8601, UTC), reason, bars.
        commands: What to type to bring what can be had.
    """

    def __init__(
        self, message: str, missing: Sequence[Mapping[str, Any]], commands: Sequence[str]
    ) -> None:
        super().__init__(message)
        self.missing, self.commands = list(missing), list(commands)

    def __reduce__(self) -> tuple[type, tuple[str, list[Mapping[str, Any]], list[str]]]:
        return type(self), (str(self), self.missing, self.commands)


class ClaimTimeoutError(PipelineError):
    """Another run holds the market's claim; the message names the run and the end of the claim."""


class KeyReusedError(PipelineError):
    """A client sent a key that it had used for another request."""


class ProviderError(PipelineError):
    """A provider failed to deliver.

    Args:
        provider: The provider's name.
        message: What was asked and what came instead; no secrets.
        status: The HTTP status, where there was one.
        reasons: By symbol, where several markets failed each for a reason of its own.
    """

    def __init__(
        self,
        provider: str,
        message: str,
        status: int | None = None,
        reasons: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(f"{provider}: {message}")
        self.provider = provider
        self.message = message
        self.status = status
        self.reasons = reasons

    def __reduce__(self) -> tuple[type, tuple[str, str, int | None, dict[str, str]]]:
        return type(self), (self.provider, self.message, self.status, dict(self.reasons))


class TransientProviderError(ProviderError):
    """The same request may succeed later."""


class PermanentProviderError(ProviderError):
    """The same request will fail again."""


class StorageError(PipelineError):
    """A call to the database failed."""


class DatabaseUnreachableError(StorageError):
    """The database does not answer at its address, or refuses the credentials."""


class ReadOnlyDatabaseError(StorageError):
    """The server accepts no writes (a replica, or read-only by setting)."""


class SchemaOutdatedError(StorageError):
    """The market tables are older or newer than this code."""


class WrongClockError(StorageError):
    """This machine's clock and the database's are too far apart to say which bars are final."""


class EmbeddedServerError(StorageError):
    """The embedded PostgreSQL could not be installed, started or reached."""
