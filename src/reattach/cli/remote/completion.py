"""Values that the shell completes, asked of the server that the command line names.

The shell waits for them, so a server that does not answer within a second completes nothing.
"""

import os
from collections.abc import Mapping
from typing import Any, Final

import typer

from reattach.cli.remote.server import DEFAULT_URL, RemoteServer

_ANSWER_SECONDS: Final = 1.0
_MOST_VALUES: Final = 50


def run_ids(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of a run: the newest runs, each with its status."""
    runs = _items(ctx, "/v1/runs/")
    return [
        (run["id"], f"{run['status']}, {run['created_at'][:16]}")
        for run in runs
        if run["id"].startswith(incomplete)
    ]


def active_run_ids(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of a run that has not ended."""
    runs = _items(ctx, "/v1/runs/", active=True)
    return [
        (run["id"], f"{run['status']}, {run['created_at'][:16]}")
        for run in runs
        if run["id"].startswith(incomplete)
    ]


def agent_ids(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of an agent, with its name; a part of the name finds it too."""
    agents = _items(ctx, "/v1/agents/", include="")
    return [(agent["id"], agent["name"]) for agent in agents if agent["id"].startswith(incomplete)]


def conversation_ids(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of a conversation, with its summary."""
    conversations = _items(ctx, "/v1/conversations/")
    return [
        (one["id"], one.get("summary") or "")
        for one in conversations
        if one["id"].startswith(incomplete)
    ]


def model_handles(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the handle of a model that the server offers."""
    handles = (str(model["handle"]) for model in _items(ctx, "/v1/models/"))
    return [handle for handle in handles if handle.startswith(incomplete)]


def token_ids(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of a stream token, with its subject."""
    return [
        (one["id"], one["run_id"] or one["conversation_id"])
        for one in _items(ctx, "/v1/tokens")
        if one["id"].startswith(incomplete) and one["revoked_at"] is None
    ]


def _items(ctx: typer.Context, path: str, **query: str | bool) -> list[dict[str, Any]]:
    """Return the items of a list; none if the server does not answer as expected."""
    given: Mapping[str, Any] = ctx.params
    server = RemoteServer(
        given.get("url") or os.environ.get("REATTACH_URL") or DEFAULT_URL,
        given.get("api_key") or os.environ.get("REATTACH_API_KEY"),
        answer_seconds=_ANSWER_SECONDS,
    )
    try:
        found: list[dict[str, Any]] = server.get(
            path, list[dict[str, Any]], limit=_MOST_VALUES, **query
        )
    except Exception:  # noqa: BLE001  an error would garble the line that is being typed
        return []
    return found
