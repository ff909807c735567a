"""Plans of a reading: the requests to make, and the events in their answers."""

import re
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import quote, urlencode

from reattach.client.errors import LostError
from reattach.client.json import object_of
from reattach.client.sse import Frame
from reattach.client.steps import Event, Request
from reattach.client.storage import Position
from reattach.domain.errors import ReattachError
from reattach.domain.limits.requests import MAX_FOLLOWED_RUNS

_DONE: Final = "[DONE]"
_DONE_ID: Final = re.compile(r"(?:(.*):)?(\d+)-done")
_EVENTS_OF_RUNS: Final = frozenset({"", "message", "error", "snapshot"})


class Plan(Protocol):
    """Something to read over as many connections as it takes."""

    @property
    def ended(self) -> bool:
        """Whether everything was taken; nothing of what follows is read."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to ask for at present."""

    @property
    def cursor(self) -> int: ...
    @property
    def run_id(self) -> str | None: ...
    @property
    def stop_reason(self) -> str | None: ...
    @property
    def remedy(self) -> str:
        """The way to go on after the client gave up."""

    def begin(self) -> None:
        """Note that the reading begins."""

    def request(self) -> Request:
        """Return the request of the next connection."""

    def know(self, run_id: str | None) -> None:
        """Take in the run that a response names."""

    def take(self, frame: Frame) -> list[Event] | None:
        """Return the new events of a frame; None if it is no sign of life.

        Raises:
            LostError: The frame cannot be the next one, or says that its run can be followed later.
            ReattachError: The second fault in a row.
        """

    def settle(self) -> None:
        """Note that the consumer has processed every event that it was given."""

    def forget(self) -> None:
        """Forget the position, which leads nowhere."""

    def fall_back(self) -> bool:
        """Go on with another run after a refusal. Return whether there is one."""


class RunPlan:
    """One run, which may not be known yet, after a cursor.

    ``first`` is the request until the run is known; a POST is repeated as it is, a GET gets the
    cursor. ``otid`` is the message that is kept until its run is known, and ``text`` its input if
    it is sent here. ``former`` is a run with a cursor to follow if ``first`` is refused.
    """

    def __init__(
        self,
        position: Position,
        first: Request | None = None,
        *,
        run_id: str | None = None,
        seq: int = 0,
        wants_snapshot: bool = False,
        otid: str | None = None,
        text: str | None = None,
        former: tuple[str, int] | None = None,
    ) -> None:
        self.run_id = run_id
        self.cursor = seq
        self.ended = False
        self.is_idle = False
        self.stop_reason: str | None = None
        self._position = position
        self._first = first
        self._wants_snapshot = wants_snapshot
        self.sent_otid = None if text is None else otid
        """The message that is sent here; None if none is."""
        self._otid = otid
        self._text = text
        self._former = former
        self._had_fault = False

    @property
    def remedy(self) -> str:
        return f"Resume later with starting_after={self.cursor}."

    def begin(self) -> None:
        if self._otid is not None and self._text is not None:
            self._position.note_sent(self._otid, self._text)

    def request(self) -> Request:
        if self.run_id is not None:
            path = f"{path_of('', self.run_id)}/stream"
        else:
            assert self._first is not None
            if self._first.method == "POST":
                return self._first
            path = self._first.path
        cursor = {"starting_after": str(self.cursor)}
        snapshot = {"from": "snapshot"} if self._wants_snapshot else {}
        return Request("GET", with_query(path, **cursor, **snapshot))

    def know(self, run_id: str | None) -> None:
        if run_id and self.run_id is None:
            self.run_id = run_id
            self._position.take(run_id, self._otid)
            self.settle()

    def take(self, frame: Frame) -> list[Event] | None:
        if frame.event == "ping":
            return []
        if frame.data is None or (frame.data != _DONE and frame.event not in _EVENTS_OF_RUNS):
            return None
        if frame.data == _DONE:
            done = _DONE_ID.fullmatch(frame.id)
            if done is not None and int(done[2]) > self.cursor:
                self._fault(f"the end came after event {self.cursor}")
            self.ended = True
            self.settle()
            return None
        event = self._decoded(frame.data)
        self.know(event.get("run_id"))
        if frame.event == "snapshot":
            seq = event.get("seq")
            if not isinstance(seq, int):
                self._fault("a snapshot without its seq came")
            event["message_type"] = "snapshot"
            self.cursor = seq
            self._wants_snapshot = False
            return [event]
        seq = event.get("seq_id")
        if not isinstance(seq, int) or seq <= self.cursor:
            return [] if event.get("message_type") == "ping" else None
        if seq > self.cursor + 1 or event.get("run_id") != self.run_id:
            self._fault(f"event {seq} of {event.get('run_id')} came after event {self.cursor}")
        self._had_fault = False
        self.cursor = seq
        self.stop_reason = event.get("stop_reason", self.stop_reason)
        return [event]

    def settle(self) -> None:
        if self.run_id is not None:
            self._position.keep(self.run_id, self.cursor, is_over=self.ended)

    def forget(self) -> None:
        self._position.forget(self.run_id, self._otid)

    def fall_back(self) -> bool:
        if self.run_id is not None or self._former is None:
            return False
        run_id, self.cursor = self._former
        self.know(run_id)
        return True

    def _decoded(self, data: str) -> dict[str, Any]:
        event = object_of(data)
        if event is None:
            self._fault(f"an event that is no JSON object came after event {self.cursor}")
        return event

    def _fault(self, fault: str) -> NoReturn:
        """Raise LostError, to read again from the last good event; ReattachError in a row."""
        if self._had_fault:
            raise ReattachError(f"The stream of run {self.run_id} is broken: {fault}.")
        self._had_fault = True
        raise LostError(fault)


class ManyPlan:
    """Any number of runs over one connection, each after its own cursor. Thread-safe.

    ``on_change`` is called when the set of runs was changed from outside.
    """

    cursor = 0
    run_id = None
    stop_reason = None
    remedy = "Follow the runs again, each after its last event."

    def __init__(self, until_closed: bool, on_change: Callable[[], None]) -> None:
        self._until_closed = until_closed
        self._on_change = on_change
        self._plans: dict[str, RunPlan] = {}

    @property
    def ended(self) -> bool:
        return not self._until_closed and not self._plans

    @property
    def is_idle(self) -> bool:
        return not self._plans

    def add(self, run_id: str, starting_after: int) -> None:
        if run_id in self._plans:
            return
        if len(self._plans) == MAX_FOLLOWED_RUNS:
            raise ReattachError(
                f"One connection follows at most {MAX_FOLLOWED_RUNS} runs.",
                remedy="Follow the others with another stream.",
            )
        nowhere = Position(None, "")
        self._plans[run_id] = RunPlan(nowhere, run_id=run_id, seq=max(starting_after, 0))
        self._on_change()

    def drop(self, run_id: str) -> None:
        if self._plans.pop(run_id, None) is not None:
            self._on_change()

    def begin(self) -> None:
        pass

    def request(self) -> Request:
        runs = [
            {"run_id": run_id, "starting_after": plan.cursor}
            for run_id, plan in list(self._plans.items())
        ]
        return Request("POST", "/v1/streams", {"runs": runs})

    def know(self, run_id: str | None) -> None:
        pass

    def take(self, frame: Frame) -> list[Event] | None:
        if frame.event == "ping":
            return []
        if frame.data is None:
            return None
        if frame.event == "run_error":
            return self._take_error(object_of(frame.data) or {})
        run_id = frame.id.rpartition(":")[0]
        plan = self._plans.get(run_id)
        if plan is None:
            return None
        events = plan.take(frame)
        if plan.ended:
            self._leave(run_id, plan)
        return events

    def settle(self) -> None:
        pass

    def forget(self) -> None:
        pass

    def fall_back(self) -> bool:
        return False

    def _take_error(self, error: dict[str, Any]) -> list[Event] | None:
        run_id = error.get("run_id")
        if run_id is None:
            raise LostError("an error of no run came")
        plan = self._plans.get(run_id)
        if plan is None:
            return None
        seconds = error.get("retry_after_seconds")
        if seconds is not None:
            raise LostError(f"{run_id}: {error.get('detail')}", float(seconds))
        self._leave(run_id, plan)
        return [{**error, "message_type": "run_error"}]

    def _leave(self, run_id: str, plan: RunPlan) -> None:
        """Forget a run, unless another thread has just added it again."""
        if self._plans.get(run_id) is plan:
            del self._plans[run_id]


def path_of(conversation_id: str, run_id: str | None) -> str:
    """Return the path of a run, or of a conversation."""
    if run_id is not None:
        return f"/v1/runs/{quote(run_id, safe='')}"
    return f"/v1/conversations/{quote(conversation_id, safe='')}"


def with_query(path: str, **members: str | None) -> str:
    """Return the path with the members that are not None added to its query."""
    query = urlencode({name: one for name, one in members.items() if one is not None})
    return f"{path}{'&' if '?' in path else '?'}{query}" if query else path
