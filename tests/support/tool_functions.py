"""Functions for tools, valid and invalid ones."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Annotated

import structlog
from opentelemetry import trace
from pydantic import Field

from reattach.domain.errors import ToolError
from reattach.tools.base import ToolContext
from reattach.tools.function import tool

RAN: list[str] = []
"""The names of the calls that ran, in order."""


def add(n: Annotated[int, Field(description="The number to add to.")], more: int = 1) -> int:
    """Add two numbers."""
    return n + more


def look_up(n: int = 1) -> str:
    """Look something up, in a span of its own."""
    with trace.get_tracer("tool").start_as_current_span("look up"):
        return str(n)


async def log_something(n: int) -> str:
    """Log a line of its own."""
    structlog.get_logger().info("something", n=n)
    return "logged"


async def greet(name: str = "you") -> dict[str, str]:
    """Greet somebody."""
    await asyncio.sleep(0)
    return {"hello": name}


@tool(requires_approval=True)
def deploy(n: int) -> str:
    """Put a version into use."""
    RAN.append(f"deploy {n}")
    return f"deployed {n}"


@tool(tenants=["tenant-1"])
def ledger(n: int, context: ToolContext) -> str:
    return f"{n} of {context.tenant}, {context.agent_id}"


@tool(tenants=["tenant-1"])
async def aledger(context: ToolContext, n: int) -> str:
    return f"{n} of {context.tenant}, {context.agent_id}"


def explode(n: int) -> str:
    raise ValueError(f"a secret of {n}")


def refuse(n: int) -> str:
    raise ToolError(f"{n} is not to be had")


def leave(n: int) -> str:
    sys.exit(n)


def hang(n: int) -> str:
    threading.Event().wait(30)
    return "too late"


async def sleep_long(n: int) -> str:
    await asyncio.Event().wait()
    return "never"


def flood(n: int) -> str:
    return "x" * 10_000_000


def everything(*values: int) -> int:
    return sum(values)
