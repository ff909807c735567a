"""The text and the position that both Python programs keep, and their tokens."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

_GIVEN = json.loads(sys.argv[1])


def new_token(fresh: bool) -> dict[str, Any]:  # noqa: ARG001
    """Return a token of the application's server, with its end."""
    with urlopen(_GIVEN["tokens"]) as response:
        token: dict[str, Any] = json.load(response)
        return token


class Kept:
    """The text that is shown, and the position after it, in one file that is replaced at once."""

    def __init__(self) -> None:
        self.server: str = _GIVEN["server"]
        self.conversation: str = _GIVEN["conversation"]
        self._file = Path(_GIVEN["kept"])
        self.position: dict[str, Any] = {}
        """The arguments of ``follow`` that go on after the text."""
        self._text = ""
        if self._file.exists():
            state = json.loads(self._file.read_text("utf-8"))
            self._text, self.position = state["text"], state["position"]

    def show(self, event: Mapping[str, Any]) -> None:
        """Add an event to the text."""
        if event["message_type"] == "assistant_message":
            self._text += event["content"]
        self.position = {"run_id": event["run_id"], "starting_after": event["seq_id"]}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"text": self._text, "position": self.position}), "utf-8")
        new.replace(self._file)
