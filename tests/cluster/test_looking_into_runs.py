"""Any server shows a run that another one drives, and its readers at a third one."""

from __future__ import annotations

from typing import Any

import pytest

from reattach.testing.programs.cluster import Cluster
from tests.cluster.clients import Client
from tests.support.stores import eventually

SPOKEN = 20
SILENT = f"[hang={SPOKEN - 1}][chunks=100]"


def without_rate(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "events_per_second"}


async def test_each_server_shows_an_open_run_with_its_events_times_and_readers(
    clients: list[Client],
) -> None:
    owner, reading, looking = clients
    thread = await owner.conversation()
    async with owner.sent(thread, SILENT) as own:
        await own.until(SPOKEN)
        run_id = own.run_id
        async with reading.stream(f"/v1/runs/{run_id}/stream", {}, method="GET") as other:
            await other.until(SPOKEN)
            path = f"/v1/admin/runs/{run_id}"

            async def has_both() -> bool:
                run = await looking.got(path)
                return {one["cursor"] for one in run["readers_list"]} == {SPOKEN} and (
                    len(run["readers_list"]) == 2
                )

            await eventually(has_both)
            run = await looking.got(path)
            assert run["events"] == run["last_seq"] == SPOKEN
            assert (run["readers"], run["log"], run["status"]) == (2, "open", "running")
            assert run["first_event_seconds"] >= 0
            processes = {one["process"]: one["transport"] for one in run["readers_list"]}
            assert processes.pop(run["owner"]) == "post"
            assert list(processes.values()) == ["get"]
            listed = await looking.got("/v1/admin/runs", query=run_id)
            (item,) = listed["items"]
            assert without_rate(item).items() <= run.items()
        timeline = await looking.got(f"/v1/runs/{run_id}/timeline")
        assert timeline["commits"][-1]["seq"] == SPOKEN
        assert timeline["missing"] == []
        frames = await looking.got(f"/v1/runs/{run_id}/frames", after_seq=0)
        by_seq = {one["seq"]: one["frame"].encode() for one in frames["items"]}
        assert by_seq == own.received.by_seq
        assert all(one["at"] for one in frames["items"])
        shown = [await one.got(f"/v1/runs/{run_id}/snapshot", seq=10) for one in clients]
        assert shown[0] == shown[1] == shown[2]
        assert shown[0]["seq"] == 10
    await reading.cancel(thread)
    ended = await looking.got(path)
    assert (ended["status"], ended["log"]) == ("cancelled", "closed")
    assert ended["events"] == ended["last_seq"]


@pytest.mark.slow
@pytest.mark.promise("P7")
async def test_a_run_whose_server_was_killed_shows_both_owners_and_the_events_without_times(
    clients: list[Client], cluster: Cluster
) -> None:
    owner, _, looking = clients
    thread = await owner.conversation()
    async with owner.sent(thread, "[chunks=150][rate=50]") as own:
        await own.until(SPOKEN)
        run_id = own.run_id
        first_owner = (await looking.got(f"/v1/admin/runs/{run_id}"))["owner"]
        # That look made the owner write the times of all events until then.
        await own.until(own.received.cursor + 10)
        cluster.servers[0].kill()
    received = await looking.resumed(run_id)
    assert received.done
    run = await looking.got(f"/v1/admin/runs/{run_id}")
    assert run["attempt_list"][0]["owner"] == first_owner
    assert run["attempt_list"][0]["token"] == 1
    assert run["events"] == run["last_seq"]
    assert run["bytes"] > 0
    assert run["owner"] != first_owner
    timeline = await looking.got(f"/v1/runs/{run_id}/timeline")
    assert timeline["missing"]
    assert timeline["commits"][-1]["seq"] == timeline["last_seq"] or run["attempts"] == 1
