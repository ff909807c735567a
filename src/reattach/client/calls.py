"""The calls of a client as plans and steps, the same for both twins."""

import json
import uuid
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, TypedDict

from reattach.client.plans import ManyPlan, RunPlan, path_of, with_query
from reattach.client.reading import Core, call
from reattach.client.states import Life
from reattach.client.steps import Request, Steps
from reattach.client.storage import Position


class Snapshot(TypedDict):
    """The messages of a run as of event ``seq``."""

    run_id: str
    conversation_id: str | None
    status: str
    stop_reason: str | None
    seq: int
    messages: list[dict[str, Any]]


class Calls:
    """Makes the plans and steps of a client's calls."""

    def __init__(self, core: Core, storage: MutableMapping[str, str] | None) -> None:
        self.core = core
        self._storage = storage

    def send(
        self,
        conversation_id: str,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        otid: str | None,
        agent_id: str | None,
        client_tools: Sequence[Mapping[str, Any]] | None,
        body: Mapping[str, Any] | None,
    ) -> RunPlan:
        """Return the plan. Its OTID is a kept one, if the same input was not answered yet."""
        position = self._position(conversation_id, agent_id)
        text = json.dumps(messages)
        if otid is None:
            sent = position.read().get("sent", {})
            otid = next((one for one, kept in sent.items() if kept == text), str(uuid.uuid4()))
        single = [{"role": "user", "content": messages}]
        given = single if isinstance(messages, str) else messages
        named = [{"otid": f"{otid}-{at}" if at else otid, **one} for at, one in enumerate(given)]
        optional = {"agent_id": agent_id, "client_tools": client_tools}
        request = Request(
            "POST",
            f"{path_of(conversation_id, None)}/messages",
            {
                **{name: one for name, one in optional.items() if one is not None},
                **(body or {}),
                "messages": named,
                "background": True,
                "stream_tokens": True,
                "streaming": True,
            },
        )
        return RunPlan(position, request, otid=otid, text=text)

    def follow(
        self,
        conversation_id: str,
        *,
        run_id: str | None,
        otid: str | None,
        agent_id: str | None,
        starting_after: int | None,
        snapshot: bool,
    ) -> RunPlan:
        name = run_id or otid
        position = self._position(name or conversation_id, agent_id, of_run=name is not None)
        kept = position.read()
        former, start = kept.get("run"), max(starting_after or 0, 0)
        seq = start if snapshot or starting_after is not None else kept.get("seq", 0)
        known = run_id or (None if kept.get("is_over") else former)
        if known is None and otid is None:
            otid = next(reversed(kept.get("sent", {})), None)
        path = f"{path_of(conversation_id, None)}/stream"
        return RunPlan(
            position,
            Request("GET", with_query(path, agent_id=agent_id, otid=otid)),
            run_id=known,
            seq=start if known is None else seq,
            wants_snapshot=snapshot,
            otid=otid if known is None else None,
            former=None if former is None else (former, seq),
        )

    def many(
        self, runs: Iterable[str] | Mapping[str, int], life: Life, *, until_closed: bool
    ) -> ManyPlan:
        plan = ManyPlan(until_closed, life.change)
        cursors = runs if isinstance(runs, Mapping) else dict.fromkeys(runs, 0)
        for run_id, starting_after in cursors.items():
            plan.add(run_id, starting_after)
        return plan

    def snapshot(
        self, conversation_id: str, run_id: str | None, agent_id: str | None
    ) -> Steps[Any]:
        path = f"{path_of(conversation_id, run_id)}/snapshot"
        return call(self.core, Request("GET", with_query(path, agent_id=agent_id)))

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_seconds: float | None
    ) -> Steps[Any]:
        return call(self.core, Request(method, path, body), silence_seconds=timeout_seconds)

    def cancel(self, conversation_id: str, run_id: str | None, agent_id: str | None) -> Steps[Any]:
        path = f"{path_of(conversation_id, run_id)}/cancel"
        of_agent = agent_id if run_id is None else None
        return call(self.core, Request("POST", with_query(path, agent_id=of_agent)))

    def _position(self, name: str, agent_id: str | None, *, of_run: bool = False) -> Position:
        key = f"reattach {self.core.url} {name} {agent_id or ''}"
        return Position(self._storage, key, of_run=of_run)
