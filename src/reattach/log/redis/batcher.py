"""Operations on many runs that share calls of one script."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from reattach.domain.errors import StoreUnavailableError
from reattach.log.redis.client import RedisClient
from reattach.log.redis.scripts import Script

_CALL_RUNS: Final = 128
"""Operations of one call: under a millisecond for which Redis does nothing else."""
_SECOND_CALL_RUNS: Final = _CALL_RUNS // 2
"""What has to wait before a second call is worth its price."""
_CALL_BYTES: Final = 512 * 1024
"""Where a call ends though more is waiting, for the same reason."""


@dataclass(frozen=True, slots=True, eq=False)
class _Operation:
    keys: tuple[bytes, ...]
    argument: bytes | None
    on_answer: Callable[[Any], None]
    done: "asyncio.Future[Any]"


class Batcher:
    """Sends what has come in since its last call as the next one.

    Operations on one run happen in the order in which they were submitted. There is no timer: a
    lone one is sent at once, and those that come meanwhile share the next call. A second call is
    under way only if there is enough for it, so that Redis works while we do. When Redis does not
    answer, everything that waits fails with the call, since it waits for the same.
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
        self._questions: dict[tuple[bytes, ...], asyncio.Future[Any]] = {}
        self._under_way: set[bytes] = set()
        """The runs of calls that are not answered."""
        self._calls = 0
        self._drains: set[asyncio.Task[None]] = set()

    def submit(
        self, keys: tuple[bytes, ...], argument: bytes | None, on_answer: Callable[[Any], None]
    ) -> "asyncio.Future[Any]":
        """Done with what the script answers for these keys, right after ``on_answer`` with it.

        Or with StoreUnavailableError. Cancelled, it may still happen, and ``on_answer`` with it.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Operation(keys, argument, on_answer, done))
        if not self._calls or (self._calls == 1 and len(self._queue) >= _SECOND_CALL_RUNS):
            self._calls += 1
            drain = asyncio.create_task(self._drain(), name="log batch")
            self._drains.add(drain)
            drain.add_done_callback(self._drains.discard)
        return done

    async def ask(self, keys: tuple[bytes, ...]) -> Any:
        """What the script answers for these keys; in one call for all who ask before it."""
        asked = self._questions.get(keys)
        if asked is None:
            asked = self._questions[keys] = self.submit(keys, None, _ignore)
            asked.add_done_callback(_retrieve)
        return await asyncio.shield(asked)

    async def aclose(self) -> None:
        """Return when everything submitted before is done or has failed."""
        while self._drains:
            await asyncio.wait(self._drains)

    async def _drain(self) -> None:
        while batch := self._next():
            runs = {operation.keys[0] for operation in batch}
            self._under_way |= runs
            try:
                answers = await self._call(batch)
                for operation, answer in zip(batch, answers, strict=True):
                    operation.on_answer(answer)
                    if not operation.done.done():
                        operation.done.set_result(answer)
            except StoreUnavailableError as error:
                self._fail(batch, error)
            except BaseException as error:
                self._calls -= 1
                self._fail(batch, error)
                raise
            finally:
                self._under_way -= runs

    def _next(self) -> Sequence[_Operation]:
        batch = self._take()
        if not batch:  # Before anybody can submit something that would wait for nobody.
            self._calls -= 1
        return batch

    def _take(self) -> Sequence[_Operation]:
        """The next operations on runs that are not under way; in a cluster one for each run."""
        batch: list[_Operation] = []
        rest: list[_Operation] = []
        runs: set[bytes] = set()
        size_bytes = 0
        for operation in self._queue:
            run = operation.keys[0]
            is_next = len(batch) < _CALL_RUNS and size_bytes < _CALL_BYTES
            if not is_next or run in self._under_way or (self._is_cluster and run in runs):
                rest.append(operation)
                continue
            runs.add(run)
            size_bytes += len(operation.argument or b"")
            batch.append(operation)
            if operation.argument is None:
                self._questions.pop(operation.keys, None)
        self._queue = rest
        return batch

    async def _call(self, batch: Sequence[_Operation]) -> Sequence[Any]:
        if self._is_cluster:
            return [
                answer
                for answers in await asyncio.gather(*(self._call_with([each]) for each in batch))
                for answer in answers
            ]
        return await self._call_with(batch)

    async def _call_with(self, batch: Sequence[_Operation]) -> Sequence[Any]:
        keys = [key for operation in batch for key in operation.keys]
        arguments = [each.argument for each in batch if each.argument is not None]
        answers: Sequence[Any] = await self._run(self._script, keys, [*self._arguments, *arguments])
        return answers

    def _fail(self, batch: Sequence[_Operation], error: BaseException) -> None:
        failed, self._queue = [*batch, *self._queue], []
        self._questions.clear()
        for operation in failed:
            if not operation.done.done():
                failure = StoreUnavailableError(str(error))
                failure.__cause__ = error
                operation.done.set_exception(failure)


def _ignore(_answer: Any) -> None:
    pass


def _retrieve(asked: "asyncio.Future[Any]") -> None:
    """Whoever asked may be gone; the failure is heard all the same."""
    if not asked.cancelled():
        asked.exception()
