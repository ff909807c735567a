"""An MCP server over standard input and output that starts fast, because it does without the SDK.

Its environment says how it behaves:

- ``MCP_JOURNAL``: a file for a line of each thing that it did
- ``MCP_LIST``: its list of tools, as JSON; ``add`` and ``die`` can be called whatever it says
- ``MCP_MUTE``: it does not answer the first call of each tool, as the journal says
- ``MCP_MODERN``: it speaks the newer protocol
- ``MCP_STUBBORN``: it says so with its secret, and ends when it is killed and not before
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

INFO = {"name": "plain", "version": "1.2.3"}
NEWER = {"resultType": "complete", "ttlMs": 0, "cacheScope": "public"}
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("add", "die")]


def note(line: str) -> None:
    if path := os.environ.get("MCP_JOURNAL"):
        with Path(path).open("a", encoding="utf-8") as journal:
            journal.write(f"{line}\n")


def called(name: str, n: int) -> dict[str, Any]:
    note(f"{name} {n}")
    if name == "die":
        os._exit(n)
    return {"content": [{"type": "text", "text": str(n + 1)}]}


def result_of(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a request; None: there is no such method."""
    match method:
        case "server/discover" if os.environ.get("MCP_MODERN"):
            about = {"_meta": {"io.modelcontextprotocol/serverInfo": INFO}}
            return {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, **about}
        case "initialize":
            version = params["protocolVersion"]
            return {"protocolVersion": version, "serverInfo": INFO, "capabilities": {"tools": {}}}
        case "tools/list":
            return {"tools": json.loads(os.environ.get("MCP_LIST", json.dumps(TOOLS)))}
        case "tools/call":
            if traceparent := params.get("_meta", {}).get("traceparent"):
                note(f"traced {traceparent}")
            return called(params["name"], params.get("arguments", {}).get("n", 1))
        case _:
            return None


def answer(request: dict[str, Any]) -> dict[str, Any]:
    head = {"jsonrpc": "2.0", "id": request["id"]}
    result = result_of(request["method"], request.get("params", {}))
    if result is None:
        return {**head, "error": {"code": -32601, "message": "There is no such method."}}
    return {**head, "result": {**result, **(NEWER if os.environ.get("MCP_MODERN") else {})}}


def is_muted(request: dict[str, Any]) -> bool:
    """Whether the call is the first one of its tool; it is noted then."""
    if request["method"] != "tools/call" or not os.environ.get("MCP_MUTE"):
        return False
    name = request["params"]["name"]
    calls = Path(os.environ["MCP_JOURNAL"]).read_text("utf-8").splitlines()
    if any(line.startswith(f"{name} ") for line in calls):
        return False
    note(f"{name} {request['params'].get('arguments', {}).get('n', 1)}")
    return True


def main() -> None:
    note(f"started {os.getpid()}")
    if os.environ.get("MCP_STUBBORN"):
        sys.stderr.write(f"stubborn with {os.environ['MCP_SECRET']}\n")
        sys.stderr.flush()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        if "id" in (request := json.loads(line)) and not is_muted(request):
            sys.stdout.write(f"{json.dumps(answer(request))}\n")
            sys.stdout.flush()
    while os.environ.get("MCP_STUBBORN"):
        time.sleep(1)


if __name__ == "__main__":
    main()
