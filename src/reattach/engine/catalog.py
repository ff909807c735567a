"""The engines of a server, by the handles of their models."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

from reattach.domain.errors import NotFoundError, StartupError
from reattach.engine.base import Engine, Model

_SHOWN_CHARACTERS = 100
"""The part of an unknown handle that the error repeats."""


class Catalog:
    """All engines of a server in order of preference; the first model is the default."""

    def __init__(self, engines: Iterable[Engine]) -> None:
        """Raises StartupError if two engines offer the same handle."""
        self._engines = tuple(engines)
        handles = [model.handle for model in self.models()]
        if twice := sorted({handle for handle in handles if handles.count(handle) > 1}):
            raise StartupError(
                f"Several engines offer {', '.join(twice)}.",
                remedy="Remove one of them from the settings, or rename it.",
            )

    def models(self) -> Sequence[Model]:
        """Return every model on offer now."""
        return [model for engine in self._engines for model in engine.models()]

    def model(self, handle: str) -> Model:
        """Return a model. Raises NotFoundError, which lists the models."""
        return self._find(handle)[1]

    def engine(self, handle: str) -> Engine:
        """Return the engine of a model. Raises NotFoundError, which lists the models."""
        return self._find(handle)[0]

    def first(self) -> str | None:
        """Return the handle of the first model, which answers where none is named."""
        return next((model.handle for model in self.models()), None)

    def may_answer(self) -> bool:
        """Whether an engine offers a model now, or may list some later."""
        return any(engine.models() or engine.lists_later for engine in self._engines)

    def problems(self) -> list[str]:
        """Return sentences about models that could not be listed."""
        return [problem for engine in self._engines for problem in engine.problems()]

    async def refresh(self) -> None:
        """Fetch the lists of all engines once, within a bound."""
        await asyncio.gather(*(engine.refresh() for engine in self._engines))

    async def keep_current(self) -> None:
        """Keep the lists of all engines current until cancelled."""
        await asyncio.gather(*(engine.keep_current() for engine in self._engines))

    async def aclose(self) -> None:
        """Close all engines, the last one first, even if one of them fails to close."""
        async with AsyncExitStack() as closing:
            for engine in self._engines:
                closing.push_async_callback(engine.aclose)

    def _find(self, handle: str) -> tuple[Engine, Model]:
        for engine in self._engines:
            model = engine.find(handle)
            if model is not None:
                return engine, model
        handles = [model.handle for model in self.models()]
        raise NotFoundError(
            f"NOT_FOUND: Handle {handle[:_SHOWN_CHARACTERS]} not found, "
            f"must be one of [{', '.join(handles)}]"
        )
