"""Sessions of the Python clients: calls are lines of JSON on stdin, and answers lines on stdout.

The calls are those of ``tests/dialects/node/sessions/driver.mjs``, which says what they mean. Runs
in the environment of each client, so a family of clients is imported when it is needed.
"""

import importlib
import json
import sys
import threading
import traceback
from typing import Any

FAMILIES = {
    "letta": "bench.dialects.programs.letta_clients",
    "responses": "bench.dialects.programs.openai_clients",
    "responses-helper": "bench.dialects.programs.openai_clients",
    "chat": "bench.dialects.programs.openai_clients",
    "chat-helper": "bench.dialects.programs.openai_clients",
    "agents": "bench.dialects.programs.agents_client",
}

_sessions: dict[int, Any] = {}
_writing = threading.Lock()


def _answer(line: dict[str, Any]) -> None:
    answer: dict[str, Any] = {"id": line["id"]}
    try:
        if "open" in line:
            options = line["open"]
            family = importlib.import_module(FAMILIES[options["client"]])
            _sessions[line["session"]] = family.CLIENTS[options["client"]](options)
            answer["value"] = None
        elif line["call"] == "view":
            session = _sessions[line["session"]]
            answer["value"] = {"kept": session.kept, "shown": session.shown}
        else:
            method = getattr(_sessions[line["session"]], line["call"])
            answer["value"] = method(*line.get("args", ()))
    except Exception:  # noqa: BLE001  the caller gets it as the answer
        answer["error"] = traceback.format_exc()
    with _writing:
        print(json.dumps(answer), flush=True)


def main() -> None:
    for text in sys.stdin:
        threading.Thread(target=_answer, args=(json.loads(text),), daemon=True).start()


if __name__ == "__main__":
    main()
