"""The matrix of clients and situations is made from experiments, and none of its cells fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from bench.dialects.clients import CLIENTS, Client
from bench.dialects.matrix import TABLE, YES, lines_of_dialects, observe
from bench.dialects.sessions import Session, Sessions, Shown
from bench.dialects.situations import SITUATIONS
from bench.dialects.stage import Stage

PAGE = Path(__file__).parents[2] / "docs" / "dialects.md"
RESPONSES = next(one for one in CLIENTS if one.name == "`openai`, Node: Responses")
CUTS = 2


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("data")) as stage:
        yield stage


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with RESPONSES.opened() as sessions:
        yield sessions


class DoublingSession(Session):
    """Shows the last thing twice once it has resumed, as a client that lost its cursor."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._has_resumed = False

    @override
    def call(self, name: str, *args: Any) -> Any:
        self._has_resumed |= name == "resume"
        return self._session.call(name, *args)

    @override
    def reloaded(self, kept: Any) -> Session:
        return DoublingSession(self._session.reloaded(kept))

    @property
    @override
    def shown(self) -> Shown:
        shown = super().shown
        return [*shown, shown[-1]] if self._has_resumed else shown


class Doubling(Sessions):
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @override
    def open(self, url: str, server: str, agent: str) -> Session:
        return DoublingSession(self._sessions.open(url, server, agent))

    @override
    def close(self) -> None:
        pass


@pytest.mark.parametrize("situation", ["cut", "past the end"])
def test_a_client_that_shows_everything_once_has_a_mark_and_one_that_doubles_has_none(
    stage: Stage, sessions: Sessions, situation: str
) -> None:
    assert observe(stage, RESPONSES, sessions, situation, CUTS) == YES
    doubled = observe(stage, RESPONSES, Doubling(sessions), situation, CUTS)
    assert doubled.startswith("**no**: "), doubled


def test_a_situation_that_a_client_cannot_handle_has_the_reason(
    stage: Stage, sessions: Sessions
) -> None:
    client = Client("any", "node", "responses", {"cancel": "it only reads"})
    assert observe(stage, client, sessions, "cancel", CUTS) == "it only reads"


def test_the_matrix_of_the_docs_has_every_client_and_situation_and_all_hold_or_have_a_reason() -> (
    None
):
    wanted = {
        (client.name, situation): client.lacks.get(situation, YES)
        for client in CLIENTS
        for situation in SITUATIONS
    }
    assert TABLE.cells_of(PAGE.read_text("utf-8")) == wanted


def test_every_file_of_the_dialects_has_its_lines_counted() -> None:
    lines = lines_of_dialects()
    assert {"ag_ui.py", "openai_responses.py", "ui_messages.py"} <= set(lines)
    assert min(lines.values()) > 0
