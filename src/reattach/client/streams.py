"""The streams of a client and the calls that return them, the same for both twins."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from reattach.client.calls import Calls
from reattach.client.plans import ManyPlan, Plan, RunPlan
from reattach.client.states import Life, OnState, State

P = TypeVar("P", bound=Plan)
S = TypeVar("S")
M = TypeVar("M")


class StreamView(Generic[P]):
    """A stream as far as it does not matter how its events come."""

    def __init__(self, plan: P, life: Life) -> None:
        self._plan = plan
        self._life = life

    @property
    def state(self) -> State:
        """The present state; after the iteration, the last one."""
        return self._life.state

    def try_now(self) -> None:
        """End a wait, and connect at once. Any thread may call that of a ``SyncClient``."""
        self._life.wake()


class RunView(StreamView[RunPlan]):
    """The stream of one run."""

    @property
    def otid(self) -> str | None:
        """The idempotency key of the message that was sent; None for a run that is followed."""
        return self._plan.sent_otid

    @property
    def seq(self) -> int:
        """The seq of the last yielded event, or the cursor before the first."""
        return self._plan.cursor

    @property
    def run_id(self) -> str | None:
        """The id of the run; None until the server has named it."""
        return self._plan.run_id


class ManyView(StreamView[ManyPlan]):
    """The stream of many runs. Any thread may change that of a ``SyncClient``."""

    def add(self, run_id: str, starting_after: int = 0) -> None:
        """Follow a run after a cursor. The connection is opened anew, with the cursors of all.

        A run that is there already keeps its cursor. Raises ReattachError if that would be more
        than 100 runs.
        """
        self._plan.add(run_id, starting_after)

    def drop(self, run_id: str) -> None:
        """Leave a run. The connection is opened anew."""
        self._plan.drop(run_id)


class StreamCalls(ABC, Generic[S, M]):
    """The calls of a client that return the stream of a run, ``S``, or of many runs, ``M``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    @abstractmethod
    def _stream(self, plan: RunPlan, life: Life) -> S:
        """Return the stream of a plan, which begins with its iteration."""

    @abstractmethod
    def _many_stream(self, plan: ManyPlan, life: Life) -> M:
        """Return the stream of a plan, which begins with its iteration."""

    def send(
        self,
        conversation_id: str,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        otid: str | None = None,
        agent_id: str | None = None,
        client_tools: Sequence[Mapping[str, Any]] | None = None,
        body: Mapping[str, Any] | None = None,
        on_state: OnState | None = None,
    ) -> S:
        """Send a text, or messages, in the background and yield the events of the run.

        The message carries an OTID, made here if none is given, so it starts exactly one run,
        however often the connection breaks. With a storage, a message that was sent before the
        process ended, and whose run is not known, keeps its OTID when the same input is sent again.
        ``agent_id`` goes with the conversation ``default``. ``body`` has further members of the
        request, such as ``override_model``. Raises as ``follow`` does.
        """
        plan = self._calls.send(
            conversation_id,
            messages,
            otid=otid,
            agent_id=agent_id,
            client_tools=client_tools,
            body=body,
        )
        return self._stream(plan, Life(on_state))

    def follow(
        self,
        conversation_id: str = "default",
        *,
        run_id: str | None = None,
        otid: str | None = None,
        agent_id: str | None = None,
        starting_after: int | None = None,
        snapshot: bool = False,
        on_state: OnState | None = None,
    ) -> S:
        """Yield the events of a run after a cursor, each once, in order, until its end.

        Without ``run_id`` and ``otid`` it follows the active run of the conversation; with a
        storage, the run that this client followed there, after the last event that was processed.
        With ``snapshot`` the first item has the messages so far: its ``message_type`` is
        ``snapshot``, and it has the members of a Snapshot. The events after it follow.

        Raises:
            NotFoundError, ConflictError, ExpiredError, UnauthorizedError: As the server answered;
                ``extra`` holds the further members of its error. A refused token was renewed once.
            ReattachError: The server refused for another reason, or is not a Reattach server, or
                no trusted TLS connection to it is possible, or its stream has gaps.
            GaveUpError: ``give_up_seconds`` passed without a sign of life.
            ClosedError: The stream was closed.
        """
        plan = self._calls.follow(
            conversation_id,
            run_id=run_id,
            otid=otid,
            agent_id=agent_id,
            starting_after=starting_after,
            snapshot=snapshot,
        )
        return self._stream(plan, Life(on_state))

    def many(
        self,
        runs: Iterable[str] | Mapping[str, int] = (),
        *,
        until_closed: bool = False,
        on_state: OnState | None = None,
    ) -> M:
        """Follow up to 100 runs, or runs with their cursors, over one connection.

        A run leaves when it ends, or with an item whose ``message_type`` is ``run_error``. The
        iteration ends when no run is left; with ``until_closed`` it waits for runs that are added
        later. Raises as ``follow`` does.
        """
        life = Life(on_state)
        return self._many_stream(self._calls.many(runs, life, until_closed=until_closed), life)
