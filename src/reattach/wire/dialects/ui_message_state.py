"""The message that the chunks of the AI SDK add up to, as its clients build it."""

from collections.abc import Iterable
from typing import Any, Final

from reattach.domain.messages import ApprovalPart

Chunk = dict[str, Any]

_KEPT: Final = frozenset({"input", "output", "errorText", "rawInput", "providerExecuted"})


class UiMessageState:
    """One message of the assistant. ``parts`` and ``metadata`` have the form of a UIMessage."""

    def __init__(self) -> None:
        self.id = ""
        self.metadata: Chunk = {}
        self.parts: list[Chunk] = []
        self._texts: dict[str, Chunk] = {}
        self._calls: dict[str, Chunk] = {}

    def message(self) -> Chunk:
        """Return the UIMessage."""
        return {
            "id": self.id,
            "role": "assistant",
            "metadata": self.metadata,
            "parts": self.parts,
        }

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Add the effects of the chunks, in order."""
        for chunk in chunks:
            self._add(chunk)

    def decide(self, decision: ApprovalPart) -> None:
        """Add the person's decision on a call, which clients make themselves."""
        part = self._calls.get(decision.tool_call_id)
        if part is None:
            return
        answer: Chunk = {"id": decision.tool_call_id, "approved": decision.approve}
        if decision.reason is not None:
            answer["reason"] = decision.reason
        part["approval"] = answer
        if part["state"] == "approval-requested":
            part["state"] = "approval-responded"

    def _add(self, chunk: Chunk) -> None:
        kind = chunk["type"]
        self.metadata |= chunk.get("messageMetadata") or {}
        if kind == "start":
            self.id = chunk["messageId"]
        elif kind == "start-step":
            self.parts.append({"type": "step-start"})
        elif kind.startswith(("text-", "reasoning-")):
            self._text(kind, chunk)
        elif kind.startswith("tool-"):
            self._tool(kind.removeprefix("tool-"), chunk)
        elif kind.startswith("data-"):
            self._data(chunk)

    def _text(self, kind: str, chunk: Chunk) -> None:
        name, _, moment = kind.rpartition("-")
        if moment == "start":
            part = {"type": name, "text": "", "state": "streaming"}
            if name == "reasoning":
                part["id"] = chunk["id"]
            self._texts[chunk["id"]] = part
            self.parts.append(part)
            return
        part = self._texts[chunk["id"]]
        if moment == "delta":
            part["text"] += chunk["delta"]
            return
        part["state"] = "done"
        if "providerMetadata" in chunk:
            part["providerMetadata"] = chunk["providerMetadata"]

    def _data(self, chunk: Chunk) -> None:
        for part in self.parts:
            if part["type"] == chunk["type"] and part.get("id") == chunk.get("id"):
                part["data"] = chunk["data"]
                return
        self.parts.append(dict(chunk))

    def _tool(self, moment: str, chunk: Chunk) -> None:
        call_id = chunk["toolCallId"]
        part = self._calls.get(call_id)
        if part is None:
            if "toolName" not in chunk:
                return
            part = self._calls[call_id] = _new_call(chunk)
            self.parts.append(part)
        match moment:
            case "input-start":
                part["state"] = "input-streaming"
            case "input-delta":
                pass
            case "approval-request":
                part["state"] = "approval-requested"
                part["approval"] = {"id": chunk["approvalId"]}
            case "input-error" | "output-error":
                part["state"] = "output-error"
            case _:
                part["state"] = moment
        part |= {name: value for name, value in chunk.items() if name in _KEPT}


def _new_call(chunk: Chunk) -> Chunk:
    if chunk.get("dynamic"):
        return {
            "type": "dynamic-tool",
            "toolName": chunk["toolName"],
            "toolCallId": chunk["toolCallId"],
        }
    return {"type": f"tool-{chunk['toolName']}", "toolCallId": chunk["toolCallId"]}
