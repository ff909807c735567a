"""The situations of the matrix. Each is an experiment with one client over a relay that cuts."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.clients.scene import until
from bench.dialects.sessions import CALL_SECONDS, Session, Shown
from bench.dialects.stage import TOOL, Stage

_WORDS: Final = 6
_MESSAGE: Final = f"[think=2][tool=ferry][chunks={_WORDS}][rate=200]"
_SLOW_WORDS: Final = 24
_SLOW: Final = f"[think=2][tool=ferry][chunks={_SLOW_WORDS}][rate=40]"
_RELOADS: Final = (2, _SLOW_WORDS // 2, _SLOW_WORDS - 2)
"""The words that are shown when the page is loaded again."""
_TRIES: Final = 5

COMPLETED, ASKED, CANCELLED = "completed", "asked", "cancelled"


class UnmetError(Exception):
    """A client did not get what it should; the text says what it got."""


@dataclass(frozen=True)
class Trial:
    """A client, an agent of its own, and the places of an answer that are cut."""

    stage: Stage
    agent: str
    open: Callable[[], Session]
    cuts: int
    """Their number."""
    begin_bytes: int = 0
    """The bytes before the first one."""

    def expect_runs(self, *statuses: str) -> None:
        found = [run["status"] for run in self.stage.runs(self.agent)]
        if found != list(statuses):
            raise UnmetError(f"runs in the records: {dict(Counter(found))}")

    def whole(self, text: str, words: int) -> tuple[Session, Shown, int]:
        """Send without a cut. Return the session, what it shows, and the bytes that it took."""
        session = self.open()
        before = self.stage.relay.bytes_down
        _expect_end(session.send(text), COMPLETED, "uncut")
        size = self.stage.relay.bytes_down - before
        shown = session.shown
        if _text(shown) != "".join(f"t{number} " for number in range(words)).strip():
            raise UnmetError(f"uncut: shown {shown}")
        return session, shown, size


def _cut(trial: Trial) -> None:
    """Break the connection after every k-th byte of the answer, its head included."""
    begin = trial.begin_bytes
    _, whole, size = trial.whole(_MESSAGE, _WORDS)
    for number in range(trial.cuts):
        place = begin + (size - begin) * (number + 1) * 9 // (10 * trial.cuts)
        when = f"cut after {place} of {size} bytes"
        session = trial.open()
        with trial.stage.cut_after(place):
            end = session.send(_MESSAGE)
        _expect_end(_resumed(session, end), COMPLETED, when)
        _expect_shown(session, whole, when)
    trial.expect_runs(*[COMPLETED] * (1 + trial.cuts))


def _reload(trial: Trial) -> None:
    """Begin anew in the middle of the answer, with what an application keeps."""
    _, whole, _ = trial.whole(_SLOW, _SLOW_WORDS)
    for words in _RELOADS:
        session = trial.open()
        session.sending(_SLOW)
        until(lambda s=session, n=words: _count(s.shown) >= n)  # type: ignore[misc]
        fresh = session.reloaded(session.kept)
        trial.stage.relay.cut()
        when = f"reloaded after {words} words"
        _expect_end(_resumed(fresh, fresh.resume()), COMPLETED, when)
        _expect_shown(fresh, whole, when)
    trial.expect_runs(*[COMPLETED] * (1 + len(_RELOADS)))


def _retry(trial: Trial) -> None:
    """Lose the answer as a whole; then the client or its application sends again."""
    _, whole, _ = trial.whole(_MESSAGE, _WORDS)
    session = trial.open()
    with trial.stage.cut_after(0):
        end = session.send(_MESSAGE)
    for _ in range(_TRIES):
        if not _is_broken(end):
            break
        end = session.repeat()
    _expect_end(end, COMPLETED, "sent again")
    _expect_shown(session, whole, "sent again")
    trial.expect_runs(COMPLETED, COMPLETED)


def _restart(trial: Trial) -> None:
    """Kill the server in the middle of the answer, and start it again."""
    _, whole, _ = trial.whole(_SLOW, _SLOW_WORDS)
    session = trial.open()
    sending = session.sending(_SLOW)
    until(lambda: _count(session.shown) >= _SLOW_WORDS // 4)
    trial.stage.restart()
    end = _resumed(session, sending.result(CALL_SECONDS))
    _expect_end(end, COMPLETED, "after the restart")
    _expect_shown(session, whole, "after the restart")
    trial.expect_runs(COMPLETED, COMPLETED)


def _cancel(trial: Trial) -> None:
    """Cancel in the middle of the answer."""
    session = trial.open()
    sending = session.sending("[chunks=3][hang=3]")
    until(lambda: _count(session.shown) >= 3)
    session.cancel()
    _expect_end(sending.result(CALL_SECONDS), CANCELLED, "after the cancel")
    trial.expect_runs(CANCELLED)


def _approval(trial: Trial) -> None:
    """Approve a call of the server's tool."""
    session = trial.open()
    end = session.send(f"[tool={TOOL}] Go")
    if end == ASKED:  # Else the client has approved it by itself.
        end = session.approve()
    _expect_end(end, COMPLETED, "after the approval")
    calls = [text for kind, text in session.shown if kind == "tool"]
    returned = trial.stage.tool_returns(trial.agent)
    if calls != [f"{TOOL}: deployed 1"] or returned != ["deployed 1"]:
        raise UnmetError(f"calls shown: {calls}, made: {returned}")
    if len(trial.stage.runs(trial.agent)) != 2:
        raise UnmetError(f"{len(trial.stage.runs(trial.agent))} runs for a message and its answer")


def _error(trial: Trial) -> None:
    """Let the run fail in the middle of the answer."""
    end = trial.open().send("[chunks=4][fail=2]")
    if not end.startswith("failed: "):
        raise UnmetError(f"the client shows: {end}")
    trial.expect_runs("failed")


def _past_the_end(trial: Trial) -> None:
    """Resume an answer that is shown whole."""
    session, whole, _ = trial.whole(_MESSAGE, _WORDS)
    _expect_end(session.resume(), COMPLETED, "resumed after the end")
    _expect_shown(session, whole, "resumed after the end")
    trial.expect_runs(COMPLETED)


SITUATIONS: Final[Mapping[str, Callable[[Trial], None]]] = {
    "cut": _cut,
    "reload": _reload,
    "retry": _retry,
    "restart": _restart,
    "cancel": _cancel,
    "approval": _approval,
    "error": _error,
    "past the end": _past_the_end,
}


def _cut_raises(trial: Trial) -> None:
    """Break the connection of a client that cannot reconnect: it must not take half for whole."""
    _, _, size = trial.whole(_MESSAGE, _WORDS)
    for number in range(1, trial.cuts + 1):
        place = size // 2 + size * number // (3 * trial.cuts)
        with trial.stage.cut_after(place):
            end = trial.open().send(_MESSAGE)
        if not _is_broken(end):
            raise UnmetError(f"cut after {place} of {size} bytes: {end}")
    until(lambda: all(run["status"] == COMPLETED for run in trial.stage.runs(trial.agent)))
    trial.expect_runs(*[COMPLETED] * (1 + trial.cuts))


WITHOUT: Final[Mapping[str, Callable[[Trial], None]]] = {"cut": _cut_raises}
"""Experiments with clients that have no way to handle a situation."""


def _resumed(session: Session, end: str) -> str:
    """Resume until the connection holds."""
    for _ in range(_TRIES):
        if not _is_broken(end):
            break
        end = session.resume()
    return end


def _is_broken(end: str) -> bool:
    return end.startswith("broke: ")


def _expect_end(end: str, wanted: str, when: str) -> None:
    if end != wanted:
        raise UnmetError(f"{when}: {end}")


def _expect_shown(session: Session, whole: Shown, when: str) -> None:
    shown = session.shown
    if shown != whole:
        raise UnmetError(f"{when}: shown {shown} instead of {whole}")


def _text(shown: Shown) -> str:
    return "".join(text for kind, text in shown if kind == "text").strip()


def _count(shown: Shown) -> int:
    return len(_text(shown).split())
