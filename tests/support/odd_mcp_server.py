"""An MCP server that answers with whatever list of tools ``MCP_LIST`` has, over standard output.

``add`` can be called, and returns "2".
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

INFO = {"name": "odd", "version": "1"}


def answer(request: dict[str, Any]) -> str | None:
    match request.get("method"):
        case "initialize":
            result: Any = {
                "protocolVersion": request["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": INFO,
            }
        case "tools/list":
            result = f'{{"tools": {os.environ["MCP_LIST"]}}}'
        case "tools/call":
            result = {"content": [{"type": "text", "text": "2"}]}
        case str(method) if "id" in request:
            error = {"code": -32601, "message": f"no {method}"}
            return json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error})
        case _:
            return None
    text = result if isinstance(result, str) else json.dumps(result)
    return f'{{"jsonrpc": "2.0", "id": {json.dumps(request["id"])}, "result": {text}}}'


if __name__ == "__main__":
    for line in sys.stdin:
        if (text := answer(json.loads(line))) is not None:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
