"""Power cuts, which lose everything that the disk had not confirmed."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.events import RunStatus
from reattach.domain.ids import Seq, Token
from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.engine.base import Turn
from reattach.engine.scripted import ScriptedEngine
from reattach.http.app import create_app
from reattach.http.context import Context
from reattach.log.base import Head
from reattach.log.sqlite.log import SqliteLog
from reattach.server import datadir
from reattach.server.assembly import assemble
from reattach.settings import Settings
from reattach.testing.conformance.log_samples import append
from reattach.wire.sse import split_frames
from tests.recovery.wal import commits, drop_commits
from tests.support.stores import Stores

DONE = b"data: [DONE]\n\n"
FIRST_BOOT, NEXT_BOOT = "boot-1", "boot-2"


class Gate:
    """Delays the engine until its last delta is committed, so that each has its own commit."""

    def __init__(self) -> None:
        self.context: Context | None = None
        self.stop_at: int | None = None
        self.stopped = asyncio.Event()

    async def __call__(self, turn: Turn, number: int) -> None:
        assert self.context is not None
        for _ in range(3):
            await asyncio.sleep(0)
            await self.context.runs.log.log._writer.perform(lambda _: None)  # type: ignore[attr-defined]
        if number == self.stop_at:
            self.stopped.set()
            await asyncio.Event().wait()


@dataclass
class Machine:
    """A server on a data directory in one boot of the machine."""

    directory: Path
    context: Context
    client: httpx2.AsyncClient
    gate: Gate

    async def post(self, path: str, body: Any) -> httpx2.Response:
        async with asyncio.timeout(30):
            return await self.client.post(path, json=body)

    async def conversation(self) -> str:
        agent = await self.post("/v1/agents/", {"model": "scripted/echo"})
        made = await self.post(f"/v1/conversations/?agent_id={agent.json()['id']}", {})
        return str(made.json()["id"])

    async def send(self, conversation_id: str, text: str, otid: str, **body: Any) -> Any:
        message = {"role": "user", "content": text, "otid": otid}
        return await self.post(
            f"/v1/conversations/{conversation_id}/messages",
            {"messages": [message], "background": True, "stream_tokens": True, **body},
        )

    async def frames(self, run_id: str) -> list[bytes]:
        piece = await self.context.runs.log.read(run_id, Seq(0), max_bytes=2**40, max_events=2**40)
        return split_frames(piece.frames)

    def as_it_stands(self, target: Path) -> Path:
        """Copy the current files."""
        shutil.copytree(self.directory, target)
        return target


@asynccontextmanager
async def machine(directory: Path, boot: str, **settings: Any) -> AsyncIterator[Machine]:
    gate = Gate()
    engine = ScriptedEngine(gate=gate)
    options = Settings(data_dir=directory, continue_runs=False, **settings)
    opened = assemble(options, engines=[engine], boot=lambda: boot)
    async with (
        opened as context,
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(create_app(context)), base_url="http://localhost"
        ) as client,
    ):
        gate.context = context
        yield Machine(directory, context, client, gate)


@dataclass
class Seen:
    """The events of a run that clients had before the power cut."""

    conversation_id: str
    run_id: str
    frames: list[bytes]
    files: Path
    commits: dict[str, list[int]] = field(default_factory=dict)
    """Where the commits of the run end in each WAL."""


async def interrupted_run(directory: Path, *, stop_at: int | None, **settings: Any) -> Seen:
    """Let a run go to ``stop_at``, or to its end, and keep the files as they are then."""
    original, kept = directory / "original", directory / "kept"
    async with machine(original, FIRST_BOOT, **settings) as before:
        conversation_id = await before.conversation()
        already = await asyncio.to_thread(commits_in, original)
        before.gate.stop_at = stop_at
        sending = asyncio.create_task(before.send(conversation_id, "one two three", "mine"))
        if stop_at is None:
            frames = split_frames((await sending).content)[:-1]
            run_id = str((await sending).headers["x-run-id"])
        else:
            async with asyncio.timeout(30):
                await before.gate.stopped.wait()
            run_id = (await before.client.get("/v1/runs/?active=true")).json()[0]["id"]
            frames = await before.frames(run_id)
        await asyncio.to_thread(before.as_it_stands, kept)
        seen = Seen(conversation_id, run_id, frames, kept)
        for name, ends in (await asyncio.to_thread(commits_in, kept)).items():
            seen.commits[name] = ends[len(already[name]) - 1 :]
        cancel = f"/v1/conversations/{conversation_id}/cancel"
        if stop_at is not None:
            await before.post(cancel, {})
        await sending
    return seen


def commits_in(directory: Path) -> dict[str, list[int]]:
    return {name: commits(directory / name) for name in ("events.db", "records.db")}


def after_power_cut(seen: Seen, target: Path, lost: dict[str, int]) -> Path:
    """Copy the files without a number of last commits of each WAL."""
    shutil.copytree(seen.files, target)
    for name, count in lost.items():
        ends = seen.commits[name]
        drop_commits(target / name, ends[len(ends) - 1 - count])
    return target


async def assert_promises_hold_or_loss_is_reported(seen: Seen, server: Machine) -> None:
    """Assert that every cursor gives the same bytes or an error that reports their loss."""
    record = await server.client.get(f"/v1/runs/{seen.run_id}")
    for cursor in range(len(seen.frames) + 1):
        answer = await server.post(
            f"/v1/runs/{seen.run_id}/stream", {"starting_after": cursor, "include_pings": False}
        )
        if answer.status_code != 200:
            assert answer.status_code in {404, 410}, answer.text
            continue
        *frames, done = split_frames(answer.content)
        assert done == DONE, answer.content
        for seq, frame in enumerate(frames, cursor + 1):
            assert re.search(rb'"seq_id":(\d+)[,}]', frame)[1] == b"%d" % seq  # type: ignore[index]
            is_known = seq <= len(seen.frames)
            assert not is_known or frame == seen.frames[seq - 1], f"{seq} is something else now"
        has_end = any(b'"stop_reason"' in frame for frame in (*seen.frames[:cursor], *frames))
        assert has_end, f"[DONE] after {cursor} without an end"
    if record.status_code == 200:
        assert record.json()["status"] in {"completed", "failed"}
    else:
        assert record.status_code == 404
    again = await server.send(seen.conversation_id, "one two three", "mine")
    assert again.status_code in {200, 410}, again.text
    after = await server.send(seen.conversation_id, "still there?", "next")
    assert after.status_code == 200, after.text
    assert split_frames(after.content)[-1] == DONE


def losses(seen: Seen) -> list[dict[str, int]]:
    """Each store loses every number of commits, the other none, all, or as many."""
    events, records = (len(seen.commits[name]) - 1 for name in ("events.db", "records.db"))
    found = {(count, other) for count in range(events + 1) for other in (0, records)}
    found |= {(other, count) for count in range(records + 1) for other in (0, events)}
    found |= {(count, min(count, records)) for count in range(events + 1)}
    return [{"events.db": of_log, "records.db": of_records} for of_log, of_records in sorted(found)]


@pytest.mark.promise("P1", "P3", "P4", "P5", "P7")
async def test_a_power_cut_at_any_commit_of_an_open_run_breaks_no_promise_or_is_reported(
    tmp_path: Path,
) -> None:
    """C10: the un-synced tail of either SQLite file is lost."""
    seen = await interrupted_run(tmp_path, stop_at=2)
    await assert_survives_power_cuts(seen, tmp_path, losses(seen))


@pytest.mark.promise("P1", "P3", "P4", "P5", "P7")
async def test_a_power_cut_at_any_commit_of_a_run_whose_record_lost_its_end_is_repaired(
    tmp_path: Path,
) -> None:
    """C10: clients had all of the answer, and the log has all, a part or nothing of it."""
    seen = await interrupted_run(tmp_path, stop_at=None)
    lost = [one for one in losses(seen) if one["records.db"] or not one["events.db"]]
    await assert_survives_power_cuts(seen, tmp_path, lost)


async def assert_survives_power_cuts(
    seen: Seen, directory: Path, cuts: list[dict[str, int]]
) -> None:
    assert len(seen.commits["events.db"]) > 3
    assert len(seen.commits["records.db"]) > 2
    for number, lost in enumerate(cuts):
        place = await asyncio.to_thread(after_power_cut, seen, directory / f"{number}", lost)
        async with machine(place, NEXT_BOOT) as server:
            try:
                await assert_promises_hold_or_loss_is_reported(seen, server)
            except AssertionError as error:
                raise AssertionError(f"having lost {lost}: {error}") from error


async def stream(server: Machine, seen: Seen, cursor: int) -> httpx2.Response:
    return await server.post(
        f"/v1/runs/{seen.run_id}/stream", {"starting_after": cursor, "include_pings": False}
    )


@pytest.mark.promise("P5")
async def test_after_a_power_cut_a_cursor_into_an_open_run_gets_410_and_the_text_is_kept(
    tmp_path: Path,
) -> None:
    """C10: nothing of the log was lost, but nobody can know that."""
    seen = await interrupted_run(tmp_path, stop_at=2)
    async with machine(seen.files, NEXT_BOOT) as server:
        for cursor in range(len(seen.frames) + 1):
            answer = await stream(server, seen, cursor)
            assert answer.status_code == 410
            assert answer.json()["earliest_seq"] == LOST_LOG_FIRST_SEQ
        record = (await server.client.get(f"/v1/runs/{seen.run_id}")).json()
        assert (record["status"], record["stop_reason"]) == ("failed", "error")
        path = f"/v1/conversations/{seen.conversation_id}/messages"
        kept = (await server.client.get(path)).json()
        texts = [one["content"] for one in kept if one["message_type"] == "assistant_message"]
        assert texts == ["one two "]


@pytest.mark.promise("P4", "P7")
async def test_a_run_of_a_process_killed_in_this_boot_keeps_all_of_its_events(
    tmp_path: Path,
) -> None:
    """C10: the death of a process alone loses nothing, so the end stands right behind."""
    seen = await interrupted_run(tmp_path, stop_at=2)
    async with machine(seen.files, FIRST_BOOT) as server:
        *frames, done = split_frames((await stream(server, seen, 0)).content)
        assert frames[: len(seen.frames)] == seen.frames
        assert b'"stop_reason"' in frames[len(seen.frames)]
        assert done == DONE


@pytest.mark.promise("P4", "P7")
async def test_a_run_written_with_durability_power_keeps_its_events_in_a_power_cut(
    tmp_path: Path,
) -> None:
    """C10: what waited for the disk cannot be lost, whatever the next durability is."""
    seen = await interrupted_run(tmp_path, stop_at=2, durability="power")
    async with machine(seen.files, NEXT_BOOT) as server:
        answer = await stream(server, seen, 0)
        assert split_frames(answer.content)[: len(seen.frames)] == seen.frames


@pytest.mark.promise("P5")
async def test_a_run_of_an_earlier_boot_stays_distrusted_until_it_has_its_end(
    tmp_path: Path,
) -> None:
    """C10: the process that found out about the power cut dies before it ends the run."""
    seen = await interrupted_run(tmp_path, stop_at=2)
    events = datadir.events_file(seen.files)
    log = await SqliteLog.open_file(events, after_power_cut=True)
    assert (await log.head(seen.run_id)).tail_uncertain
    await log.aclose()
    log = await SqliteLog.open_file(events)
    head = await log.head(seen.run_id)
    assert (head.last_seq, head.tail_uncertain) == (len(seen.frames), True)
    assert (await log.open("new", Token(1))).head == Head(Seq(1), Seq(0), closed=False)
    empty = Head(LOST_LOG_FIRST_SEQ, LOST_LOG_FIRST_SEQ - 1, closed=False)
    assert (await log.open(seen.run_id, Token(9))).head == replace(empty, tail_uncertain=True)
    await append(log, seen.run_id, Token(9), LOST_LOG_FIRST_SEQ, [b"end"], close=True)
    await log.open("late", Token(1))
    await log.aclose()
    log = await SqliteLog.open_file(events)
    assert await log.head("late") == Head(Seq(1), Seq(0), closed=False)
    assert await log.head(seen.run_id) == Head(LOST_LOG_FIRST_SEQ, LOST_LOG_FIRST_SEQ, closed=True)
    await log.aclose()


@pytest.mark.promise("P5", "P17")
async def test_after_a_power_cut_a_created_run_counts_as_running_with_tools_begun(
    stores: Stores,
) -> None:
    """C10: the commits that said so may be lost."""
    conversation = await stores.conversation()
    service = stores.service()
    run = service._sends._new_run(stores.send(conversation, "hello"), "scripted/echo")
    await stores.records.runs.create(run.tenant, run, None, [])
    await stores.records.runs.note_begun(run.id, run.token, [])
    assert await stores.records.runs.distrust_active() == 1
    found = await stores.run(run)
    assert (found.status, found.begun_calls) == (RunStatus.RUNNING, None)
    await stores.service().start()
    head = await stores.head(run)
    assert head is not None
    assert head.first_seq == LOST_LOG_FIRST_SEQ
    assert await stores.records.runs.distrust_active() == 0
