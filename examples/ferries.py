"""An MCP server that books ferries. Each booking is a line in the file that its argument names."""

import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

server = MCPServer("ferries", version="1.0", log_level="ERROR")


@server.tool()
def timetable(to: str) -> str:
    """Return when ferries leave."""
    return f"To {to}: 8:00, 12:00 and 17:30."


@server.tool()
def book(to: str, seats: int = 1) -> str:
    """Book a ferry. This costs money."""
    with Path(sys.argv[1]).open("a", encoding="utf-8") as bookings:
        bookings.write(f"{to} {seats}\n")
    return f"Booked {seats} seats to {to}, which is an island."


if __name__ == "__main__":
    server.run()
