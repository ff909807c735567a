"""Failures of the database: as errors for clients, and their reasons for the operator."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from reattach.domain.errors import (
    ConflictError,
    InvalidArgumentError,
    StartupError,
    StoreUnavailableError,
)
from reattach.domain.errors.stores import CommitUnknownError
from reattach.records.database.columns import UnstorableError
from reattach.redact import redact_url

_ADDRESS: Final = "Check the address in REATTACH_DATABASE_URL and that the server is running."

_REMEDIES: Final = (
    (
        r"password|authentication|no pg_hba\.conf entry|role .* (does not exist|is not permitted)",
        "Check the user and the password in REATTACH_DATABASE_URL, and pg_hba.conf.",
    ),
    (
        r"database .* does not exist",
        "Create it with CREATE DATABASE, then run `reattach db upgrade` with the same settings.",
    ),
    (
        r"too many (clients|connections)|connection slots",
        "Raise max_connections of the server, or use fewer processes.",
    ),
    (r"starting up|shutting down|recovery", "Wait until the server is up, then start again."),
    (r"ssl|certificate", "Check sslmode and the certificates that REATTACH_DATABASE_URL names."),
    (
        r"unable to open database file|readonly|disk",
        "Check the file's folder, permissions and disk space.",
    ),
    (r"not a database|malformed", "Use another file, or restore this one from a backup."),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason of a failure, in one line, and the next step."""

    reason: str
    remedy: str


@contextmanager
def explain_startup_failures(url: str) -> Iterator[None]:
    """Raise StoreUnavailableError as a StartupError that says why, when a database is opened."""
    try:
        yield
    except StoreUnavailableError as error:
        failure = failure_of(error)
        raise StartupError(
            f"The records at {redact_url(url)} cannot be used: {failure.reason}.",
            remedy=failure.remedy,
        ) from error


def failure_of(error: BaseException) -> Failure:
    """Return the failure behind an error of a transaction or a driver."""
    cause: BaseException = error
    if isinstance(error, StoreUnavailableError) and error.__cause__ is not None:
        cause = error.__cause__
    if isinstance(cause, DBAPIError) and cause.orig is not None:
        cause = cause.orig
    if isinstance(cause, TimeoutError):
        return Failure("it does not answer in time", _ADDRESS)
    reason = _first_line(str(cause)) or type(cause).__name__
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, reason, re.IGNORECASE):
            return Failure(reason, remedy)
    return Failure(reason, _ADDRESS)


def _first_line(text: str) -> str:
    """Return the first line of the server's own message, without the driver's words."""
    _, fatal, message = text.partition("FATAL: ")
    lines = (message if fatal else text).strip().splitlines()
    if not fatal and len(lines) > 1 and lines[0].startswith("Multiple connection attempts"):
        lines = [line for line in lines if line.startswith("- ")] or lines
    return lines[0].strip().rstrip(".") if lines else ""


@contextmanager
def translate_failures() -> Iterator[None]:
    """Raise the errors of the database as errors of the domain, with the SQL in their cause."""
    try:
        yield
    except IntegrityError as error:
        raise ConflictError(
            "The stored data changed in the meantime and now conflicts with this request. "
            "Read it again and repeat the request."
        ) from error
    except (UnstorableError, UnicodeEncodeError, OverflowError, DataError) as error:
        raise _unstorable() from error
    except (DBAPIError, PoolTimeoutError, TimeoutError, sqlite3.Error) as error:
        raise StoreUnavailableError(
            "The database of the records cannot be read or written at present. Try again; if it "
            "persists, check the server's log and the space and permissions of the database."
        ) from error
    except StatementError as error:
        if not isinstance(error.orig, ValueError | OverflowError):
            raise
        raise _unstorable() from error


@contextmanager
def translate_commit_failures(driver: Any) -> Iterator[None]:
    """Raise the failure of a commit over a network as CommitUnknownError, unless it is certain."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, TimeoutError) as error:
        if not driver.may_have_committed:
            raise
        raise CommitUnknownError(
            "The database did not confirm a change in time, so it may have been made. "
            "Send the same request again, with its OTIDs; if it persists, check the database."
        ) from error


def _unstorable() -> InvalidArgumentError:
    return InvalidArgumentError(
        "A value cannot be stored: text must be valid Unicode without U+0000, and numbers must be "
        "finite and fit in 64 bits."
    )
