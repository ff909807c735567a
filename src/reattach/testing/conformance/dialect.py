"""The tests that every dialect has to pass: subclass ``DialectConformance``."""

import asyncio
from typing import Final

import pytest

from reattach.domain.errors import CursorAheadError, ExpiredError
from reattach.domain.events import RunStatus, Stopped, Usage
from reattach.domain.ids import DEFAULT_TENANT, Seq, Token
from reattach.log.memory import MemoryLog
from reattach.records.base import Target
from reattach.runs.following.follow import Following, Watch, follow
from reattach.runs.translation import translation as translation_module
from reattach.runs.translation.translations import Translations
from reattach.testing.conformance.dialect_samples import SAMPLE_RUNS, SampleRun
from reattach.wire.dialects.dialect import Dialect
from reattach.wire.letta import Encoder

WAIT_SECONDS: Final = 30.0
_EVERY_RUN = pytest.mark.parametrize("run", SAMPLE_RUNS, ids=lambda run: run.name)


def frames_of(dialect: Dialect, run: SampleRun) -> list[bytes]:
    """Return all frames of the run."""
    fold = dialect.fold(run.facts)
    return [*fold.begin(), *(frame for event in run.events for frame in fold.add(event))]


class Stage:
    """A run in a log that grows on demand, and the translations of a process."""

    def __init__(self, run: SampleRun) -> None:
        self.log = MemoryLog()
        self.translations = Translations(self._follow, Watch(60.0))
        self.target = Target(run.facts.run_id, DEFAULT_TENANT, RunStatus.RUNNING, background=True)
        self._run = run
        self._added = 0

    async def _follow(self, target: Target, cursor: int, *, prefetches: bool) -> Following:
        return await follow(
            self.log, target.run_id, Seq(cursor), max_events=10_000, prefetches=prefetches
        )

    async def grow(self, count: int) -> None:
        """Append up to ``count`` further events; the terminal group is one step."""
        run_id = self._run.facts.run_id
        if not self._added:
            await self.log.open(run_id, Token(1))
        terminal = next(n for n, event in enumerate(self._run.events) if isinstance(event, Stopped))
        until = min(self._added + count, len(self._run.events))
        if until > terminal:
            until = len(self._run.events)
        events = self._run.events[self._added : until]
        if not events:
            return
        writer = self.log.writer(run_id, Token(1), await self.log.head(run_id))
        frames = Encoder(run_id).frames(events, after_seq=Seq(self._added))
        closes = until == len(self._run.events)
        await writer.append(Seq(self._added + 1), frames, close=closes)
        self._added = until

    @property
    def is_over(self) -> bool:
        return self._added == len(self._run.events)

    async def reader(self, dialect: Dialect, cursor: int, *, max_events: int = 10) -> Following:
        return await self.translations.follow(
            self.target, dialect, self._run.facts, cursor, max_events=max_events
        )


async def read_all(following: Following) -> list[bytes]:
    """Read to the end of the run, as one joined text cut into its frames."""
    async with asyncio.timeout(WAIT_SECONDS):
        read = b""
        while True:
            changed = asyncio.Event()
            following.wake = changed.set
            piece = await following.read()
            read += piece.frames
            if following.finished:
                return _split(read)
            if not piece.frames:
                await changed.wait()


def _split(frames: bytes) -> list[bytes]:
    return [frame + b"\n\n" for frame in frames.split(b"\n\n")[:-1]]


class DialectConformance:
    """Tests of one dialect. Give the fixture ``dialect``."""

    @_EVERY_RUN
    def test_the_frames_depend_on_the_events_alone(self, dialect: Dialect, run: SampleRun) -> None:
        assert frames_of(dialect, run) == frames_of(dialect, run)

    @_EVERY_RUN
    def test_each_frame_is_one_event_of_an_event_stream(
        self, dialect: Dialect, run: SampleRun
    ) -> None:
        for frame in frames_of(dialect, run):
            assert frame.endswith(b"\n\n")
            assert frame.count(b"\n\n") == 1
            assert b"data: " in frame

    @_EVERY_RUN
    def test_the_end_of_a_run_is_shown_with_its_last_event_only(
        self, dialect: Dialect, run: SampleRun
    ) -> None:
        fold = dialect.fold(run.facts)
        fold.begin()
        terminal = False
        for event in run.events:
            frames = fold.add(event)
            terminal = terminal or isinstance(event, Stopped)
            assert not (terminal and frames) or isinstance(event, Usage)
        assert fold.size_bytes >= 0

    @_EVERY_RUN
    async def test_a_reader_that_is_cut_at_any_frame_resumes_with_exactly_the_rest(
        self, dialect: Dialect, run: SampleRun
    ) -> None:
        stage, expected = Stage(run), frames_of(dialect, run)
        await stage.grow(len(run.events))
        for cut in range(len(expected) + 1):
            async with await stage.reader(dialect, cut) as following:
                assert following.cursor == cut
                assert await read_all(following) == expected[cut:]

    @_EVERY_RUN
    async def test_readers_who_come_at_any_event_get_the_same_frames(
        self, dialect: Dialect, run: SampleRun
    ) -> None:
        stage, expected = Stage(run), frames_of(dialect, run)
        readers: list[Following] = []
        reading: list[asyncio.Task[list[bytes]]] = []
        while not stage.is_over:
            await stage.grow(1)
            readers.append(await stage.reader(dialect, 0))
            reading.append(asyncio.create_task(read_all(readers[-1])))
        for task in reading:
            assert await task == expected
        for reader in readers:
            await reader.aclose()
        assert len(stage.translations) == 1

    @_EVERY_RUN
    async def test_frames_that_are_no_longer_in_memory_are_computed_again(
        self, dialect: Dialect, run: SampleRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(translation_module, "TRANSLATION_BYTES", 200)
        stage, expected = Stage(run), frames_of(dialect, run)
        await stage.grow(len(run.events))
        for cut in {0, 1, len(expected) // 4, len(expected) // 2, len(expected) - 1}:
            async with await stage.reader(dialect, cut, max_events=1) as following:
                assert await read_all(following) == expected[cut:]

    @_EVERY_RUN
    async def test_a_translation_goes_on_where_it_stopped_when_readers_come_back(
        self, dialect: Dialect, run: SampleRun
    ) -> None:
        stage, expected, got = Stage(run), frames_of(dialect, run), list[bytes]()
        while not stage.is_over:
            await stage.grow(1)
            async with await stage.reader(dialect, len(got)) as following:
                while piece := (await following.read()).frames:
                    got += _split(piece)
        assert got == expected

    @_EVERY_RUN
    async def test_a_reader_who_comes_while_the_last_one_leaves_gets_the_rest(
        self, dialect: Dialect, run: SampleRun
    ) -> None:
        stage, expected = Stage(run), frames_of(dialect, run)
        await stage.grow(1)
        leaving = await stage.reader(dialect, 0)
        for _ in range(3):
            closing = asyncio.create_task(leaving.aclose())
            await asyncio.sleep(0)
            leaving = await stage.reader(dialect, 0)
            await closing
        reading = asyncio.create_task(read_all(leaving))
        while not stage.is_over:
            await stage.grow(1)
            await asyncio.sleep(0)
        assert await reading == expected
        await leaving.aclose()

    async def test_a_cursor_beyond_the_newest_frame_of_an_open_run_is_refused(
        self, dialect: Dialect
    ) -> None:
        run = SAMPLE_RUNS[0]
        stage = Stage(run)
        await stage.grow(1)
        with pytest.raises(CursorAheadError):
            await stage.reader(dialect, 1_000)
        await stage.grow(len(run.events))
        async with await stage.reader(dialect, 1_000) as following:
            assert await read_all(following) == []

    async def test_a_run_whose_first_events_are_gone_has_no_frames(self, dialect: Dialect) -> None:
        run = SAMPLE_RUNS[0]
        stage = Stage(run)
        await stage.grow(len(run.events))
        await stage.log.trim(run.facts.run_id, Seq(2))
        with pytest.raises(ExpiredError):
            await stage.reader(dialect, 0)
