"""Sessions of the official Python SDK of Letta."""

import uuid
from typing import Any

import httpx
from letta_client import APIConnectionError, APIStatusError, Letta

from bench.dialects.programs.shown import Shown, added, tool

_ENDS = {"end_turn": "completed", "cancelled": "cancelled", "requires_approval": "asked"}


class _Letta:
    def __init__(self, options: dict[str, Any]) -> None:
        self.sdk = Letta(base_url=options["url"], api_key="any", timeout=20.0)
        self.agent = options["agent"]
        self.kept: dict[str, Any] = options["kept"] or {"shown": [], "end": None}
        if options["kept"] is None:  # Not over the relay: only the answer is cut.
            with Letta(base_url=options["server"], api_key="any") as past:
                self.kept["conversation"] = past.conversations.create(agent_id=self.agent).id

    @property
    def shown(self) -> Shown:
        shown: Shown = self.kept["shown"]
        return shown

    def send(self, text: str) -> str:
        return self._begin({"role": "user", "content": text})

    def approve(self) -> str:
        answer = {"type": "approval", "tool_call_id": self.kept["asked"], "approve": True}
        return self._begin({"type": "approval", "approvals": [answer]})

    def repeat(self) -> str:
        """Send again, under the same OTID: the answer begins anew."""
        kept = self.kept
        kept |= {"shown": kept["before"], "last": 0, "end": None}
        message: Any = {**kept["message"], "otid": kept["otid"]}
        return self._read(
            lambda: self.sdk.conversations.messages.create(
                kept["conversation"], messages=[message], background=True, stream_tokens=True
            )
        )

    def resume(self) -> str:
        kept = self.kept
        return self._read(
            lambda: self.sdk.conversations.messages.stream(
                kept["conversation"], otid=kept["otid"], starting_after=kept["last"]
            )
        )

    def cancel(self) -> None:
        self.sdk.conversations.cancel(self.kept["conversation"])

    def _begin(self, message: dict[str, Any]) -> str:
        self.kept |= {"message": message, "otid": str(uuid.uuid4()), "before": self.shown}
        return self.repeat()

    def _read(self, opened: Any) -> str:
        try:
            with opened() as stream:
                for event in stream:
                    self._take(event)
        except (httpx.TransportError, APIConnectionError) as error:
            return f"broke: {error}"
        except APIStatusError as error:
            if isinstance(error.body, dict) and "seq_id" in error.body:
                self.kept["last"] = error.body["seq_id"]
            self.kept["end"] = f"failed: {error.message}"
        return self.kept["end"] or "hangs"

    def _take(self, event: Any) -> None:
        kept, kind = self.kept, event.message_type
        if kind == "ping":
            return
        kept["last"] = event.seq_id
        if kind == "assistant_message":
            kept["shown"] = added(kept["shown"], "text", event.content)
        elif kind == "reasoning_message":
            kept["shown"] = added(kept["shown"], "reasoning", event.reasoning)
        elif kind == "tool_return_message":
            kept["shown"] = [*kept["shown"], tool(event.name, event.tool_return)]
        elif kind == "approval_request_message":
            kept.setdefault("asked", event.tool_call.tool_call_id)
        elif kind == "stop_reason":
            kept["end"] = _ENDS.get(event.stop_reason, f"failed: {event.stop_reason}")


CLIENTS = {"letta": _Letta}
