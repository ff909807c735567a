"""The faults: each hits a client in the middle of the answer, or after it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.clients.clients import Client
from bench.clients.scene import DAY_SECONDS, RETENTION_SECONDS, Run, Scene, until

TOKEN_SECONDS: Final = 32
"""A server announces the end of a token 30 s before, so a shorter life would end at once."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and the run under which it is injected."""

    name: str
    inject: Callable[[Scene, Run, Client], None]
    words: int = 72
    per_second: float = 12.0
    retention_seconds: float = DAY_SECONDS
    token_seconds: int = 600
    trace: Callable[[Scene], int] = lambda scene: scene.relay.connections
    """A count that rises if the fault has hit the client."""


def _cut(scene: Scene, _run: Run, _client: Client) -> None:
    """Reset the connection, between any two bytes."""
    scene.relay.cut_after(700)


def _reload(_scene: Scene, _run: Run, client: Client) -> None:
    client.restart()


def _sleep(scene: Scene, run: Run, client: Client) -> None:
    """Stop the process, and cut its connection meanwhile, as networks do."""
    with client.asleep():
        scene.relay.cut()
        scene.wait_until_ended(run)


def _kill(scene: Scene, _run: Run, _client: Client) -> None:
    scene.server.kill()
    scene.server.start()


def _expire_token(scene: Scene, run: Run, _client: Client) -> None:
    """Let the answer go on for longer than a token is valid."""
    scene.wait_until_ended(run)


def _restart_after_end(_scene: Scene, _run: Run, client: Client) -> None:
    until(lambda: client.view.end is not None)
    client.restart()


def _expire_log(scene: Scene, run: Run, _client: Client) -> None:
    """Keep the client offline until the run has ended and its log is gone."""
    with scene.offline():
        scene.wait_until_ended(run)
        scene.wait_until_expired(run)


def _tokens(scene: Scene) -> int:
    """Each start of a client, and each end of its token, takes a new one."""
    return scene.tokens_issued


FAULTS: Final = (
    Fault("cut", _cut),
    Fault("reload", _reload),
    Fault("asleep", _sleep),
    Fault("server killed and restarted", _kill),
    Fault(
        "token expired",
        _expire_token,
        words=360,
        per_second=10.0,
        token_seconds=TOKEN_SECONDS,
        trace=_tokens,
    ),
    Fault("reload after the end", _restart_after_end, trace=_tokens),
    Fault("log expired", _expire_log, retention_seconds=RETENTION_SECONDS),
)
