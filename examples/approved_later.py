"""A tool call waits for an approval across a restart of the server, with three clients.

The first client asks a question, and the agent's model calls a tool of an MCP server that needs an
approval. The server is killed and started again. The second client finds the pending call,
approves it, and leaves in the middle of the answer. The third client resumes that answer to its
end. The tool has run once.

Install Reattach with the extra ``mcp`` (docs/install.md) and ``letta-client``, and run
``python examples/approved_later.py``. It needs no key: the scripted model calls the tools that a
message names in brackets.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from letta_client import Letta, NotFoundError
from letta_client.types import AgentState
from letta_client.types.agents import ApprovalReturnParam

from reattach.testing import ServerProcess

FERRIES = Path(__file__).with_name("ferries.py")

SETTINGS = """
scripted = true

[mcp.ferries]
command = {python}
args = [{program}, {bookings}]
requires_approval = ["book"]
"""


def new_agent(client: Letta) -> AgentState:
    """Create an agent with the tools, which exist once the MCP server has started."""
    tools = ["ferries__timetable", "ferries__book"]
    for _ in range(100):
        try:
            return client.agents.create(name="traveller", model="scripted/echo", tools=tools)
        except NotFoundError:
            time.sleep(0.3)
    raise SystemExit("The MCP server did not start.")


def ask(client: Letta) -> str:
    """Be the first client: ask, see that a call is pending, and return the conversation."""
    agent = new_agent(client)
    conversation = client.conversations.create(agent_id=agent.id)
    question = 'To Skye! [tool=ferries__book][arguments={"to": "Skye", "seats": 2}]'
    for event in client.conversations.messages.create(
        conversation.id,
        messages=[{"role": "user", "content": question, "otid": "to-skye-1"}],
        background=True,
    ):
        if event.message_type == "approval_request_message":
            print("asked: may", event.tool_call.name, "run with", event.tool_call.arguments)
        if event.message_type == "stop_reason":
            print("the run ended:", event.stop_reason)
    return conversation.id


def approve(client: Letta, conversation_id: str) -> tuple[str, int]:
    """Be the second client: approve the pending call and leave after the first event.

    Return the run and the number of the last event: all that the third client needs.
    """
    request = next(
        message
        for message in client.conversations.messages.list(conversation_id, order="desc")
        if message.message_type == "approval_request_message"
    )
    assert isinstance(request.tool_calls, list)
    decisions = [
        ApprovalReturnParam(type="approval", tool_call_id=call.tool_call_id, approve=True)
        for call in request.tool_calls
    ]
    stream = client.conversations.messages.create(
        conversation_id,
        messages=[{"type": "approval", "approvals": decisions, "otid": "to-skye-2"}],
        background=True,
        stream_tokens=True,
    )
    with stream:
        event = next(event for event in stream if event.message_type == "tool_return_message")
    print("approved, and the tool returned:", event.tool_return)
    assert event.run_id is not None
    assert event.seq_id is not None
    return event.run_id, event.seq_id


def resume(client: Letta, run_id: str, seq_id: int) -> None:
    """Be the third client: read the rest of the answer."""
    text = ""
    for event in client.runs.messages.stream(run_id, starting_after=seq_id):
        if event.message_type == "assistant_message":
            text += str(event.content)
        if event.message_type == "stop_reason":
            print("resumed:", text.strip())
            print("the run ended:", event.stop_reason)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        bookings, config = Path(directory, "bookings.txt"), Path(directory, "reattach.toml")
        config.write_text(
            SETTINGS.format(
                python=json.dumps(sys.executable),
                program=json.dumps(str(FERRIES)),
                bookings=json.dumps(str(bookings)),
            )
        )
        arguments = ["--config", str(config), "--log-level", "warning"]
        with ServerProcess(Path(directory, "data"), arguments=arguments) as server:
            conversation_id = ask(Letta(base_url=server.url, api_key="any"))
            server.kill()
            print("the server is killed; bookings so far:", bookings.exists())
            server.start()
            run_id, seq_id = approve(Letta(base_url=server.url, api_key="any"), conversation_id)
            resume(Letta(base_url=server.url, api_key="any"), run_id, seq_id)
            server.stop()
        print("bookings:", bookings.read_text().splitlines())


if __name__ == "__main__":
    main()
