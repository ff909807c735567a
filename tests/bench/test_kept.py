"""Data directories that are filled by copies of a server's own runs."""

import json
from pathlib import Path

import pytest

from bench import growth
from bench.contenders.contender import asked
from bench.contenders.kept import copy_runs, wait_until_folded
from bench.contenders.product import Reattach
from bench.measuring.load import Request
from bench.measuring.machine import Cores

CONVERSATIONS, TURNS, COPIED = 2, 2, 40


@pytest.mark.timeout(100)
def test_a_server_serves_copied_runs_like_its_own_and_accepts_sends(tmp_path: Path) -> None:
    cores, contender = Cores.available(), Reattach()
    with contender.serving(tmp_path, cores) as server:
        growth.send(server, CONVERSATIONS, TURNS, cores)
        wait_until_folded(tmp_path, CONVERSATIONS * TURNS)
        own = server.listed_runs(100)
    assert len(own) == CONVERSATIONS * TURNS

    copy_runs(tmp_path, COPIED)

    with contender.serving(tmp_path, cores) as server:
        listed = server.listed_runs(100)
        assert len(set(listed)) == COPIED
        assert listed[: len(own)] == own, "copies are older than the runs that they copy"
        for run_id in listed:
            replay = Request.of("POST", f"/v1/runs/{run_id}/stream", {"starting_after": 0})
            frames = asked(server.port, replay).decode()
            assert frames.count(f'"run_id":"{run_id}"') >= growth.SEND_EVENTS
            messages = json.loads(
                asked(server.port, Request.of("GET", f"/v1/runs/{run_id}/messages"))
            )
            assert {message["message_type"] for message in messages} == {
                "user_message",
                "assistant_message",
            }
            assert all(message["id"] in frames for message in messages[1:])
        growth.send(server, CONVERSATIONS, TURNS, cores)
        assert len(server.listed_runs(100)) == COPIED + CONVERSATIONS * TURNS
