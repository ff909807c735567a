"""Async generator functions as an engine: an application's own agent in Python."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from inspect import iscoroutinefunction, isgeneratorfunction

from reattach.domain.events import Usage
from reattach.domain.messages import TextPart
from reattach.engine.base import Delta, Engine, Finished, Model, StepFinished, Turn, Way

AnswerFunction = Callable[[Turn], AsyncIterator[str | Delta]]
"""Answers one turn. A ``str`` is a TextPart; an empty one is ignored."""


class FunctionEngine(Engine):
    """Answers with async generator functions, one per model.

    A function gets the turn and yields output as soon as it has it; the last user message is in
    ``turn.input``. Output after its last ``StepFinished`` counts as one step of unknown usage.
    After ``Finished`` nothing more is requested. A function that yields calls with
    ``needs_approval`` returns then. The client runs them and sends their returns as the input of
    the next turn, or approves them, and they are that turn's ``due`` for the function to run. The
    generator is closed when the run is cancelled. Clients see the text of an EngineError; any other
    exception ends the run as an internal error.

    Examples:
        >>> engine = FunctionEngine()
        >>> @engine.model("parrot")
        ... async def parrot(turn):
        ...     for word in turn.input[-1].text.split():
        ...         yield word + " "
        >>> [model.handle for model in engine.models()]
        ['function/parrot']
    """

    def __init__(
        self,
        functions: AnswerFunction | Mapping[str, AnswerFunction] | None = None,
        *,
        provider_name: str = "function",
        context_window_tokens: int = 128_000,
        own_tools: Collection[str] | None = None,
    ) -> None:
        """Offer ``functions`` by name, or a single one under its own name.

        The handle of a model is ``provider_name/name``. ``own_tools`` names the tools that the
        functions run themselves; a call of any other tool gets an error return. Without it, every
        call counts as one of their own.
        """
        self.own_tools = own_tools
        self._provider_name = provider_name
        self._context_window_tokens = context_window_tokens
        self._functions: dict[str, AnswerFunction] = {}
        self._models: dict[str, Model] = {}
        self._continuing: set[str] = set()
        if isinstance(functions, Mapping):
            for name, function in functions.items():
                self.model(name)(function)
        elif functions is not None:
            self.model(getattr(functions, "__name__", "answer"))(functions)

    def model(
        self, name: str, *, continues: bool = False
    ) -> Callable[[AnswerFunction], AnswerFunction]:
        """Return a decorator that registers a function for the model ``name``.

        The function is unchanged. ``continues`` says that it reads ``turn.said``, the text that an
        interrupted attempt had produced, and yields only what follows; other functions are called
        again only while none of their text was read. Raises ValueError if the name is taken or
        empty, and TypeError if the function cannot be an async generator function.
        """
        if not name or name in self._functions:
            raise ValueError(f"the model name {name!r} is empty or taken; use another one")

        def register(function: AnswerFunction) -> AnswerFunction:
            _check_answers(name, function)
            self._functions[name] = function
            self._models[name] = Model(
                handle=f"{self._provider_name}/{name}",
                name=name,
                provider_name=self._provider_name,
                provider_type="openai",
                context_window_tokens=self._context_window_tokens,
                display_name=name,
                can_summarize=False,
            )
            if continues:
                self._continuing.add(name)
            return function

        return register

    def ways(self, turn: Turn) -> Collection[Way]:
        name = turn.model.removeprefix(f"{self._provider_name}/")
        return {Way.PREFIX, Way.STEP} if name in self._continuing else {Way.STEP}

    def models(self) -> Sequence[Model]:
        return [*self._models.values()]

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        function = self._functions[turn.model.removeprefix(f"{self._provider_name}/")]
        in_step = False
        end = Finished()
        async with AsyncExitStack() as closing:
            answers = function(turn)
            if not isinstance(answers, AsyncIterator):
                raise TypeError(
                    f"the function of {turn.model} must be an async generator, "
                    f"not return {type(answers).__name__}"
                )
            if aclose := getattr(answers, "aclose", None):
                closing.push_async_callback(aclose)
            async for answer in answers:
                if isinstance(answer, str):
                    if answer:
                        in_step = True
                        yield TextPart(answer)
                    continue
                if isinstance(answer, Finished):
                    end = answer
                    break
                if not isinstance(answer, Delta):
                    raise TypeError(
                        f"{turn.model} yielded {type(answer).__name__}, no str or Delta"
                    )
                if isinstance(answer, TextPart) and not answer.text:
                    continue
                in_step = not isinstance(answer, StepFinished)
                yield answer
        if in_step:
            yield StepFinished(Usage(step_count=1))
        yield end


def _check_answers(name: str, function: object) -> None:
    """Raise TypeError unless the function may return an async iterator."""
    kind = "" if callable(function) else type(function).__name__
    if isgeneratorfunction(function):
        kind = "a generator function"
    elif iscoroutinefunction(function):
        kind = "a coroutine function"
    if kind:
        raise TypeError(f"{name!r} must be an async generator function; got {kind}")
