"""The child process of the local model; ``local.py`` starts it and talks to it.

It runs as a script without importing Reattach, so that it starts fast and a fault in native code
ends only this process. It ends when its standard input closes, which the operating system does when
the server ends in any way.

Both directions are lines of JSON. In: ``{"id", "body", "prompt_limit_tokens"}`` asks for an answer
to the chat completion request ``body``; ``{"cancel": id}`` cancels it. Out, by ``id``: any number
of ``{"text"}`` and ``{"reasoning"}``, then one of ``{"end", "usage"}``, ``{"error"}`` and
``{"overflow": prompt tokens}``, which says that the prompt exceeds its limit and nothing was
generated; a limit of 0 counts the prompt. ``{"fatal"}`` has no id, and the process ends.
"""

import importlib
import json
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Final, cast

Chunk = Mapping[str, object]

BATCH_TOKENS: Final = 64
"""The prompt tokens after which an answer can be stopped."""

MICRO_BATCH_TOKENS: Final = 32
"""The prompt tokens that are computed at a time.

From 64 on, llama.cpp computes attention with another kernel, which rounds differently from
generation. A text that is read again after a crash would then be continued differently.
"""


FITS_ANYWHERE_BYTES: Final = 256 * 1024 * 1024
"""The size of a model file up to which the model is not fitted to the memory."""


def _load(path: str, context_tokens: int, parallel: int, threads: int) -> Any:
    """Return a ``Server`` of xllamacpp, which has no types."""
    xllamacpp = importlib.import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.cpuparams.n_threads = threads
    parameters.n_parallel = parallel
    parameters.n_ctx = context_tokens * parallel
    # Only a callback can stop an answer, and the prompt has one per batch.
    parameters.n_batch = BATCH_TOKENS
    parameters.n_ubatch = MICRO_BATCH_TOKENS
    parameters.cache_ram_mib = 0
    parameters.warmup = False
    # Fitting a model to a GPU's memory reads it twice, for a third of the load.
    parameters.fit_params = os.path.getsize(path) > FITS_ANYWHERE_BYTES  # noqa: PTH202
    parameters.verbosity = -1
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.api_keys = [secrets.token_hex(32)]
    # It always serves HTTP: give it a socket file that is deleted once it listens.
    with tempfile.TemporaryDirectory() as directory:
        parameters.hostnames = [os.path.join(directory, "s.sock")]  # noqa: PTH118
        return xllamacpp.Server(parameters)


class LlamaProcess:
    """Answers requests, ``parallel`` at a time, the others in order of arrival."""

    def __init__(self, replies: BinaryIO, parallel: int) -> None:
        self._replies = replies
        self._writing = threading.Lock()
        self._cancelled: set[int] = set()
        self._server: Future[Any] = Future()
        self._workers = ThreadPoolExecutor(parallel)

    def load(self, path: str, context_tokens: int, parallel: int, threads: int) -> None:
        """Load the model, or report the failure and end the process."""
        try:
            server = _load(path, context_tokens, parallel, threads)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            self._reply({"fatal": f"{type(error).__name__}: {error}"})
            os._exit(1)
        self._server.set_result(server)

    def take(self, command: Mapping[str, object]) -> None:
        """Start or cancel an answer without waiting."""
        if "cancel" in command:
            self._cancelled.add(cast(int, command["cancel"]))
        else:
            self._workers.submit(self._answer, command)

    def _reply(self, reply: Mapping[str, object]) -> None:
        with self._writing:
            self._replies.write(json.dumps(reply).encode() + b"\n")

    def _answer(self, command: Mapping[str, object]) -> None:
        request = cast(int, command["id"])
        try:
            server = self._server.result()
            if request not in self._cancelled:
                answer = _Answer(
                    request,
                    cast(int, command["prompt_limit_tokens"]),
                    self._reply,
                    lambda: request in self._cancelled,
                )
                server.handle_chat_completions(cast(Chunk, command["body"]), answer.take)
                answer.finish()
        except Exception as error:  # noqa: BLE001 - a request without an end would wait forever
            self._reply({"id": request, "error": f"{type(error).__name__}: {error}"})
        finally:
            self._cancelled.discard(request)


class _Answer:
    """Turns the chunks of one chat completion into replies."""

    def __init__(
        self,
        request: int,
        prompt_limit_tokens: int,
        reply: Callable[[Mapping[str, object]], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._request = request
        self._limit = prompt_limit_tokens
        self._reply = reply
        self._is_cancelled = is_cancelled
        self._end: object = None
        self._usage: object = None
        self._is_over = False

    def take(self, chunk: Chunk) -> bool:
        """Pass on the content of a chunk; return True to stop the generation."""
        if self._is_over or self._is_cancelled():
            self._is_over = True
            return True
        if isinstance(error := chunk.get("error"), Mapping):
            self._fail(error)
            return True
        progress = chunk.get("prompt_progress")
        if isinstance(progress, Mapping) and cast(int, progress["total"]) > self._limit:
            self._finish_with({"overflow": progress["total"]})
            return True
        for choice in cast(list[Mapping[str, object]], chunk.get("choices") or []):
            delta = cast(Chunk, choice.get("delta") or {})
            if text := delta.get("reasoning_content"):
                self._reply({"id": self._request, "reasoning": text})
            if text := delta.get("content"):
                self._reply({"id": self._request, "text": text})
            self._end = choice.get("finish_reason") or self._end
        self._usage = chunk.get("usage") or self._usage
        return False

    def finish(self) -> None:
        """Reply that the answer has ended."""
        if not self._is_over:
            self._finish_with({"end": self._end, "usage": self._usage})

    def _fail(self, error: Mapping[str, object]) -> None:
        if error.get("type") == "exceed_context_size_error":
            self._finish_with({"overflow": error["n_prompt_tokens"]})
        else:
            self._finish_with({"error": str(error.get("message"))})

    def _finish_with(self, reply: Mapping[str, object]) -> None:
        self._is_over = True
        self._reply({"id": self._request, **reply})


def main() -> None:
    """Serve until standard input closes. Arguments: path, context tokens, parallel, threads."""
    path = sys.argv[1]
    context_tokens, parallel, threads = map(int, sys.argv[2:])
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    # Native code must not print between the lines.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    if hasattr(os, "nice"):
        os.nice(5)  # the server's readers have priority over the model
    process = LlamaProcess(replies, parallel)
    loading = (path, context_tokens, parallel, threads)
    threading.Thread(target=process.load, args=loading, daemon=True).start()
    for line in sys.stdin.buffer:
        process.take(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
