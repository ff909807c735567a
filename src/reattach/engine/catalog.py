"""Which engine answers for which model."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

from reattach.domain.errors import NotFoundError, StartupError
from reattach.engine.base import Engine, Model

_SHOWN_CHARACTERS = 100
"""As much of a wrong handle is repeated in the error, which may be of any length."""


class Catalog:
    """All engines of a server, in order of preference: the first model is the default one."""

    def __init__(self, engines: Iterable[Engine]) -> None:
        """Raises StartupError if two engines offer a model of the same handle."""
        self._engines = tuple(engines)
        handles = [model.handle for model in self.models()]
        if twice := sorted({handle for handle in handles if handles.count(handle) > 1}):
            raise StartupError(
                f"Several engines offer {', '.join(twice)}.",
                remedy="Remove one of them from the settings, or rename it.",
            )

    def models(self) -> Sequence[Model]:
        """Every model that can be asked at present."""
        return [model for engine in self._engines for model in engine.models()]

    def model(self, handle: str) -> Model:
        """Look up a model; raises NotFoundError that names those there are."""
        return self._find(handle)[1]

    def engine(self, handle: str) -> Engine:
        """Look up who answers for a model; raises NotFoundError that names those there are."""
        return self._find(handle)[0]

    def first(self) -> str | None:
        """The handle of the first model, which answers where nothing else is named."""
        return next((model.handle for model in self.models()), None)

    def may_answer(self) -> bool:
        """Whether any engine offers a model now, or may list some later."""
        return any(engine.models() or engine.lists_later for engine in self._engines)

    def problems(self) -> list[str]:
        """Sentences on what kept models from being listed."""
        return [problem for engine in self._engines for problem in engine.problems()]

    async def refresh(self) -> None:
        """Bring the lists of all engines up to date once, within a bound."""
        await asyncio.gather(*(engine.refresh() for engine in self._engines))

    async def keep_current(self) -> None:
        """Keep the lists of all engines current until cancelled."""
        await asyncio.gather(*(engine.keep_current() for engine in self._engines))

    async def aclose(self) -> None:
        """Close all engines, the last one first, also when one of them fails to close."""
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
