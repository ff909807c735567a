"""When the events of a run came, as a page draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.live_server import LiveServer, new_threads
from tests.support.raw_clients import client_of, start
from tests.support.received import Received


async def timeline(live: LiveServer, run_id: str, **query: int) -> dict[str, Any]:
    found: dict[str, Any] = await live.got(f"/v1/runs/{run_id}/timeline", **query)
    return found


async def paused_run(live: LiveServer) -> tuple[str, int]:
    """A run that waited for a minute after some events, and the last one before that."""
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=6]", after=3)
    last = (await live.got(f"/v1/runs/{run_id}/frames"))["last_seq"]
    live.clock.skipped_seconds += 60
    return run_id, last


async def test_the_longest_gap_is_the_time_in_which_nothing_came(live: LiveServer) -> None:
    run_id, last = await paused_run(live)
    before = await timeline(live, run_id)
    assert before["last_seq"] == before["commits"][-1]["seq"] == last
    await live.ended(run_id)
    shown = await timeline(live, run_id)
    assert shown["gaps"][0]["after_seq"] == last
    assert 60 <= shown["gaps"][0]["seconds"] < 120
    assert shown["missing"] == []
    assert shown["commits"][: len(before["commits"])] == before["commits"]
    assert shown["commits"][-1]["seq"] == shown["last_seq"]
    times = [one["at"] for one in shown["commits"]]
    assert times == sorted(times)
    assert shown["began_at"] <= times[0]
    assert len((await timeline(live, run_id, buckets=2))["commits"]) <= 2


async def test_each_frame_has_the_time_at_which_it_was_in_the_log(live: LiveServer) -> None:
    run_id, last = await paused_run(live)
    await live.ended(run_id)
    commits = {one["seq"]: one["at"] for one in (await timeline(live, run_id))["commits"]}
    items = (await live.got(f"/v1/runs/{run_id}/frames", after_seq=0))["items"]
    assert all(item["at"] for item in items)
    assert items[last - 1]["at"] == commits[last]
    assert items[last]["at"] > items[last - 1]["at"]


async def test_the_times_are_deleted_with_the_events(live: LiveServer) -> None:
    run_id, _ = await paused_run(live)
    await live.ended(run_id)
    before = live.rows()["run_timelines"]
    assert (await live.client.delete(f"/v1/runs/{run_id}")).status_code == 200
    assert live.rows()["run_timelines"] == before - 1
    expired, _ = await paused_run(live)
    await live.ended(expired)
    live.clock.skipped_seconds += 25 * 3600
    await live.context.runs.sweep()
    assert live.rows()["run_timelines"] == 0
    gone = await live.client.get(f"/v1/runs/{expired}/timeline")
    assert (gone.status_code, gone.json()["code"]) == (410, "expired")


@pytest.mark.parametrize("buckets", ["0", "2001", "many"])
async def test_a_bad_number_of_commits_is_refused(live: LiveServer, buckets: str) -> None:
    run_id, _ = await paused_run(live)
    refused = await live.client.get(f"/v1/runs/{run_id}/timeline?buckets={buckets}")
    assert refused.status_code == 422
    await live.ended(run_id)


async def test_the_events_of_a_killed_process_have_no_times(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, arguments=["--scripted"]) as server:
        received = Received()

        def kill_in_mid_answer() -> None:
            if received.cursor >= 5 and server.running:
                server.kill()

        async with client_of(server) as client:
            thread = await client.conversation()
            text = "[chunks=60][rate=30]"
            run_id = await client.send(
                thread, text, received, otid="one", on_read=kill_in_mid_answer
            )
            assert run_id is not None
            await start(server)
            await client.resume(run_id, received)
            shown = await client.got(f"/v1/runs/{run_id}/timeline")
    assert received.done
    (lost,) = shown["missing"]
    assert lost["first_seq"] == 1
    assert 5 <= lost["last_seq"] < shown["last_seq"]
    assert shown["commits"][0]["seq"] > lost["last_seq"]
    assert shown["commits"][-1]["seq"] == shown["last_seq"]
