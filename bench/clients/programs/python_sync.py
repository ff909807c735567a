"""Show an answer with ``reattach.client.SyncClient``; keep the text and the position in a file."""

from bench.clients.programs.kept import Kept, new_token
from reattach.client import ReattachError, SyncClient

kept = Kept()
try:
    with SyncClient(kept.server, token=new_token) as client:
        for event in client.follow(kept.conversation, **kept.position):
            kept.show(event)
    print("ended")
except ReattachError as error:
    print(f"{type(error).__name__} ({error.status})")
