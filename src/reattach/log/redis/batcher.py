"""Batching of operations on many runs into calls of one script."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from reattach.domain.errors import StoreUnavailableError
from reattach.futures import settle
from reattach.log.redis.client import RedisClient
from reattach.log.redis.scripts import Script
from reattach.log.redis.subscriber import report_defect

_CALL_RUNS: Final = 128
"""The most operations per call, which blocks Redis for under a millisecond."""
_SECOND_CALL_RUNS: Final = _CALL_RUNS // 2
"""The number of waiting operations that justifies a second concurrent call."""
_CALL_BYTES: Final = 512 * 1024
"""The most bytes per call, for the same reason."""

Answered = Callable[[Any, StoreUnavailableError | None], None]
"""Called with the script's answer, or with the failure of the call. Must not raise."""


class _Operation:
    __slots__ = ("answered", "argument", "keys")

    def __init__(self, keys: tuple[bytes, ...], argument: bytes | None, answered: Answered) -> None:
        self.keys = keys
        self.argument = argument
        self.answered = answered


class Batcher:
    """Sends everything submitted since the last call as the next call.

    Operations on one run take effect in the order of submission. There is no timer: a lone
    operation is sent immediately, and operations that arrive during a call share the next one. A
    second concurrent call is made only if enough operations wait, so that Redis works while this
    process does. When Redis does not answer, all waiting operations fail with the call, because
    they would wait for the same answer.
    """

    def __init__(
        self,
        client: RedisClient,
        script: Script,
        arguments: Sequence[bytes | str | int] = (),
        *,
        writes: bool,
    ) -> None:
        self._script = script
        self._arguments = arguments
        self._is_cluster = client.is_cluster
        self._run = client.write if writes else client.run
        self._queue: list[_Operation] = []
        self._pending_queries: dict[tuple[bytes, ...], asyncio.Future[Any]] = {}
        self._runs_in_flight: set[bytes] = set()
        """The runs of calls that are not answered yet."""
        self._calls = 0
        self._drain_tasks: set[asyncio.Task[None]] = set()

    def submit(self, keys: tuple[bytes, ...], argument: bytes | None, answered: Answered) -> None:
        """Queue an operation; ``answered`` is called once, in a later tick of the event loop."""
        self._queue.append(_Operation(keys, argument, answered))
        if not self._calls or (self._calls == 1 and len(self._queue) >= _SECOND_CALL_RUNS):
            self._calls += 1
            drain = asyncio.create_task(self._drain(), name="log batch")
            self._drain_tasks.add(drain)
            drain.add_done_callback(self._drain_tasks.discard)

    def future_of(self, keys: tuple[bytes, ...], argument: bytes | None) -> "asyncio.Future[Any]":
        """Queue an operation; the future gets the script's answer for these keys.

        It fails with StoreUnavailableError. If it is cancelled, the operation may still happen.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(keys, argument, partial(settle, done))
        return done

    async def ask(self, keys: tuple[bytes, ...]) -> Any:
        """Return the script's answer for these keys, shared by all callers before the next call."""
        asked = self._pending_queries.get(keys)
        if asked is None:
            asked = self._pending_queries[keys] = self.future_of(keys, None)
            asked.add_done_callback(_mark_retrieved)
        return await asyncio.shield(asked)

    async def aclose(self) -> None:
        """Return when every submitted operation is done or has failed."""
        while self._drain_tasks:
            await asyncio.wait(self._drain_tasks)

    async def _drain(self) -> None:
        try:
            while batch := self._take_batch():
                runs = {operation.keys[0] for operation in batch}
                self._runs_in_flight |= runs
                try:
                    answers = [*zip(batch, await self._call(batch), strict=True)]
                except BaseException as error:
                    self._fail(batch, error)
                    if not isinstance(error, StoreUnavailableError):
                        raise
                else:
                    for operation, answer in answers:
                        _answer(operation, answer)
                finally:
                    self._runs_in_flight -= runs
        finally:  # In the same tick as the last look, so that a new operation starts a new drain.
            self._calls -= 1

    def _take_batch(self) -> Sequence[_Operation]:
        """Return the next operations on runs without a call in flight; in a cluster one per run."""
        batch: list[_Operation] = []
        rest: list[_Operation] = []
        runs: set[bytes] = set()
        size_bytes = 0
        for operation in self._queue:
            run = operation.keys[0]
            is_next = len(batch) < _CALL_RUNS and size_bytes < _CALL_BYTES
            if not is_next or run in self._runs_in_flight or (self._is_cluster and run in runs):
                rest.append(operation)
                continue
            runs.add(run)
            size_bytes += len(operation.argument or b"")
            batch.append(operation)
            if operation.argument is None:
                self._pending_queries.pop(operation.keys, None)
        self._queue = rest
        return batch

    async def _call(self, batch: Sequence[_Operation]) -> Sequence[Any]:
        if self._is_cluster:
            calls = (self._call_with([each]) for each in batch)
            return [answer for (answer,) in await asyncio.gather(*calls)]
        return await self._call_with(batch)

    async def _call_with(self, batch: Sequence[_Operation]) -> Sequence[Any]:
        keys = [key for operation in batch for key in operation.keys]
        arguments = [each.argument for each in batch if each.argument is not None]
        answers: Sequence[Any] = await self._run(self._script, keys, [*self._arguments, *arguments])
        return answers

    def _fail(self, batch: Sequence[_Operation], error: BaseException) -> None:
        failed, self._queue = [*batch, *self._queue], []
        self._pending_queries.clear()
        for operation in failed:
            operation.answered(None, _unavailable(error))


def _answer(operation: _Operation, answer: Any) -> None:
    try:
        operation.answered(answer, None)
    except Exception as error:  # noqa: BLE001  the others must get their answers, and this one an end
        report_defect(error)
        operation.answered(None, _unavailable(error))


def _unavailable(error: BaseException) -> StoreUnavailableError:
    failure = StoreUnavailableError(str(error))
    failure.__cause__ = error
    return failure


def _mark_retrieved(asked: "asyncio.Future[Any]") -> None:
    """Mark the failure as retrieved even if every caller was cancelled."""
    if not asked.cancelled():
        asked.exception()
