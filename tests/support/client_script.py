"""A Python client whose server, time and chance a test plays, without I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from datetime import timedelta
from typing import Any

from reattach.client.calls import Calls
from reattach.client.errors import LostError
from reattach.client.plans import Plan
from reattach.client.reading import Core, Reading
from reattach.client.states import Life, State
from reattach.client.steps import (
    Answer,
    Disconnect,
    Emit,
    GetToken,
    Open,
    Read,
    ReadAll,
    Request,
    Step,
    Wait,
)
from reattach.client.tokens import Tokens
from reattach.domain.clock import utc_text
from tests.support.clocks import NOON, LeapClock

RUN = "run-11111111-1111-4111-8111-111111111111"
OTHER = "run-22222222-2222-4222-8222-222222222222"
URL = "https://example.org/reattach"
STREAM = {"content-type": "text/event-stream; charset=utf-8", "x-run-id": RUN}


def frame(seq: int, run_id: str = RUN, **more: Any) -> str:
    event = {"message_type": "assistant_message", "content": f"t{seq} ", "run_id": run_id}
    return f"id: {seq}\ndata: {json.dumps({**event, 'seq_id': seq, **more})}\n\n"


def frames(first: int, last: int) -> str:
    return "".join(frame(seq) for seq in range(first, last + 1))


def noon(seconds: float) -> str:
    """Return a moment after the clock's start."""
    return utc_text(NOON + timedelta(seconds=seconds))


def done(seq: int, run_id: str | None = None) -> str:
    prefix = "" if run_id is None else f"{run_id}:"
    return f"event: done\nid: {prefix}{seq}-done\ndata: [DONE]\n\n"


class Script:
    """A client whose server, time and chance the test plays."""

    def __init__(
        self,
        *,
        token: Callable[[bool], Any] | None = None,
        storage: MutableMapping[str, str] | None = None,
        give_up_seconds: float = 600.0,
        was_attached: bool = False,
    ) -> None:
        self.clock = LeapClock()
        self.core = Core(
            url=URL,
            tokens=Tokens(None, token, self.clock),
            keepalive_seconds=15.0,
            give_up_seconds=give_up_seconds,
            first_wait_seconds=0.25,
            longest_wait_seconds=15.0,
            was_attached=was_attached,
            clock=self.clock,
            uniform=lambda low, high: high,
        )
        self.calls = Calls(self.core, storage)
        self.states: list[State] = []
        self.life = Life(self.states.append)
        self.seqs: list[Any] = []
        """The seqs of the events that the consumer got; other items as they are."""

    def begin(self, plan: Plan) -> Script:
        self._steps = Reading(self.core, plan, self.life).steps()
        self.step: Step | None = None
        self._advance(lambda: next(self._steps))
        return self

    def follow(self, **target: Any) -> Script:
        given = {"conversation_id": "default", "run_id": None, "otid": None, "agent_id": None}
        more = {"starting_after": None, "snapshot": False}
        return self.begin(self.calls.follow(**{**given, **more, **target}))

    def send(self, text: str, otid: str | None = None) -> tuple[Script, str]:
        none = {"agent_id": None, "client_tools": None, "body": None}
        plan = self.calls.send("conv-1", text, otid=otid, **none)
        assert plan.sent_otid is not None
        return self.begin(plan), plan.sent_otid

    def give(self, result: Any = None) -> None:
        self._advance(lambda: self._steps.send(result))

    def fail(self, cause: str = "cut", least_seconds: float = 0.0) -> None:
        self._advance(lambda: self._steps.throw(LostError(cause, least_seconds)))

    def leave(self) -> None:
        self._steps.close()

    @property
    def request(self) -> Request:
        assert isinstance(self.step, Open)
        return self.step.request

    def answer(self, text: str = "", **headers: str) -> None:
        """Answer with a stream, and write its first piece."""
        assert isinstance(self.step, Open)
        self.give(Answer(200, STREAM | headers))
        if text:
            self.write(text)

    def write(self, text: str) -> None:
        assert isinstance(self.step, Read)
        self.give(text.encode())

    def refuse(self, status: int, body: object, **headers: str) -> None:
        assert isinstance(self.step, Open)
        self.give(Answer(status, headers))
        assert isinstance(self.step, ReadAll)
        self.give(body if isinstance(body, bytes) else json.dumps(body).encode())

    def refuse_token(self) -> None:
        """Answer that the token is not valid; the client asks for a fresh one."""
        assert isinstance(self.step, Open)
        self.give(Answer(401))

    def wait(self) -> float:
        """Pass the time that the client waits, and return it."""
        assert isinstance(self.step, Wait)
        assert self.step.seconds is not None
        seconds = self.step.seconds
        self.clock.leap(seconds)
        self.give()
        return seconds

    def _advance(self, go: Callable[[], Step]) -> None:
        """Go to the next step that the test has to take."""
        try:
            self.step = go()
            while True:
                step = self.step
                if isinstance(step, Emit):
                    self.seqs.append(step.event.get("seq_id", dict(step.event)))
                    self.step = next(self._steps)
                elif isinstance(step, Disconnect):
                    self.step = next(self._steps)
                elif isinstance(step, GetToken):
                    self._take_token(step.instead_of)
                else:
                    return
        except StopIteration:
            self.step = None

    def _take_token(self, instead_of: str | None) -> None:
        tokens = self.core.tokens
        if tokens.must_ask(instead_of):
            assert tokens.source is not None
            try:
                tokens.take(tokens.source(instead_of is not None or tokens.kept is not None))
            except OSError as error:
                try:
                    tokens.fail(instead_of, str(error))
                except LostError as loss:
                    self.step = self._steps.throw(loss)
                    return
        self.step = self._steps.send(tokens.kept)

    @property
    def names(self) -> list[str]:
        return [state.name for state in self.states]
