"""Show an answer with ``reattach.client.Client``; keep the text and the position in a file."""

import asyncio

from bench.clients.programs.kept import Kept, new_token
from reattach.client import Client, ReattachError


async def main() -> None:
    kept = Kept()
    try:
        async with Client(kept.server, token=new_token) as client:
            async for event in client.follow(kept.conversation, **kept.position):
                kept.show(event)
        print("ended")
    except ReattachError as error:
        print(f"{type(error).__name__} ({error.status})")


asyncio.run(main())
