"""Streams of runs in other dialects."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from typing_extensions import override

from reattach.domain.ids import Seq
from reattach.http.context import Context
from reattach.http.stream.framing import EVENT_STREAM, NOT_BUFFERED, Framing
from reattach.http.stream.response import RunStream
from reattach.log.base import Slice
from reattach.records.base import Run, Target
from reattach.runs.following.follow import Following
from reattach.runs.translation.facts import facts_of
from reattach.runs.translation.translations import Translations
from reattach.wire.dialects.dialect import Dialect, RunFacts
from reattach.wire.event_source import KEEPALIVE

_NO_STORE: Final = (b"cache-control", b"no-store, no-transform")


class DialectFraming(Framing):
    """The bytes of a dialect around its frames. Keepalives are comments, as all dialects allow."""

    def __init__(self, dialect: Dialect, prelude: bytes = b"") -> None:
        self.headers = (EVENT_STREAM, _NO_STORE, NOT_BUFFERED, *dialect.headers)
        self._last_frame = dialect.last_frame
        self._opening = prelude

    @override
    def take_opening(self) -> bytes:
        opening, self._opening = self._opening, b""
        return opening

    @override
    def close(self) -> None:
        self._opening = b""

    @override
    def keepalive(self, at: datetime, last_seq: Seq, run_id: str) -> bytes:
        return KEEPALIVE

    @override
    def done(self, last_seq: Seq) -> bytes:
        return self._last_frame


class TranslatedRun:
    """The frames of one run in a dialect, as the source of a stream."""

    def __init__(self, translations: Translations, dialect: Dialect, facts: RunFacts) -> None:
        self._translations = translations
        self._dialect = dialect
        self._facts = facts

    def remainder(self, target: Target, cursor: int, *, max_events: int) -> Slice | None:
        return self._translations.remainder(target, self._dialect, cursor, max_events=max_events)

    async def follow(
        self,
        target: Target,
        cursor: int,
        *,
        max_events: int,
        waits: bool,  # noqa: ARG002  a dialect has no fast path
    ) -> Following:
        return await self._translations.follow(
            target, self._dialect, self._facts, cursor, max_events=max_events
        )


def dialect_stream(
    context: Context,
    run: Run,
    dialect: Dialect,
    *,
    cursor: int = 0,
    headers: Mapping[str, str] | None = None,
    resumes: bool = False,
    on_leave: Callable[[], object] = lambda: None,
    prelude: bytes = b"",
) -> RunStream:
    """Return the stream of a run in a dialect, from ``cursor`` frames on.

    The body ends properly only after the end of the run. Otherwise the connection is aborted,
    because most clients take a clean end for the end of the answer. ``resumes`` says that the
    request did not start the run. ``on_leave`` is called if the reader leaves before the end.
    ``prelude`` are whole frames of this request, before those of the run; no cursor counts them.
    """
    return RunStream(
        context.runs,
        Target.of(run),
        context.clock,
        cursor=cursor,
        include_pings=True,
        stall_seconds=context.settings.stall_seconds,
        headers=headers,
        framing=DialectFraming(dialect, prelude),
        source=TranslatedRun(context.translations, dialect, facts_of(run)),
        resumes=resumes,
        on_leave=on_leave,
    )
