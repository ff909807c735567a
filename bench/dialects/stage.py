"""The place of the matrix: a server with the scripted engine, behind a relay on the TCP level."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from reattach.testing.closing import Closing
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.support.threads import raw_client

_NEVER: Final = 1 << 40
TOOL: Final = "deploy"
"""A tool of the server that needs an approval."""


class Stage(Closing):
    """The server, and the relay in front of it that cuts connections."""

    def __init__(self, folder: Path) -> None:
        self.server = ServerProcess(
            folder,
            arguments=["--scripted", "--log-level", "error"],
            environment={
                "REATTACH_TOOLS": f"tests.support.tool_functions:{TOOL}",
                "REATTACH_CORS_ORIGINS": "*",
            },
        )

    def __enter__(self) -> "Stage":
        self.server.__enter__()
        self.relay = Relay(self.server.address)
        self._raw = raw_client(self.server.url)
        return self

    def close(self) -> None:
        self._raw.close()
        self.relay.close()
        self.server.close()

    def restart(self) -> None:
        """Kill the server and start it on the same port."""
        self.server.kill()
        self.server.start()

    def agent(self) -> str:
        """Create an agent with the tool, and return its id."""
        body = {"name": "guide", "model": "scripted/echo", "tools": [TOOL]}
        response = self._raw.post("/v1/agents/", json=body)
        assert response.status_code == 200, response.text
        made: str = response.json()["id"]
        return made

    def runs(self, agent_id: str) -> list[dict[str, Any]]:
        """Return the runs of an agent in the records, oldest first."""
        query = {"agent_id": agent_id, "order": "asc", "limit": "1000"}
        runs: list[dict[str, Any]] = self._got("/v1/runs/", **query)
        return runs

    def tool_returns(self, agent_id: str) -> list[str]:
        """Return the results of the tool in the messages of an agent's runs."""
        return [
            message["tool_return"]
            for run in self.runs(agent_id)
            for message in self._got(f"/v1/runs/{run['id']}/messages")
            if message["message_type"] == "tool_return_message"
        ]

    @contextmanager
    def cut_after(self, size_bytes: int) -> Iterator[None]:
        """Cut all connections once the server has sent so many bytes more.

        Raises:
            RuntimeError: It did not send so many.
        """
        before = self.relay.bytes_down
        self.relay.cut_after(size_bytes)
        try:
            yield
        finally:
            hit = self.relay.bytes_down - before >= size_bytes
            self.relay.cut_after(_NEVER)
        if not hit:
            raise RuntimeError(f"The cut after {size_bytes} bytes did not hit the answer.")

    def _got(self, path: str, **query: str) -> Any:
        response = self._raw.get(path, params=query)
        assert response.status_code == 200, response.text
        return response.json()
