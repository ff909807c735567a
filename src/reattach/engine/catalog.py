"""Which engine answers for which model."""

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

from reattach.engine.base import Engine, Model
from reattach.errors import NotFoundError, StartupError

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
                f"Several engines offer {', '.join(twice)}. Leave out one of them, or rename it."
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

    async def aclose(self) -> None:
        """Close all engines, the last one first, also when one of them fails to close."""
        async with AsyncExitStack() as closing:
            for engine in self._engines:
                closing.push_async_callback(engine.aclose)

    def _find(self, handle: str) -> tuple[Engine, Model]:
        handles = []
        for engine in self._engines:
            for model in engine.models():
                if model.handle == handle:
                    return engine, model
                handles.append(model.handle)
        raise NotFoundError(
            f"NOT_FOUND: Handle {handle[:_SHOWN_CHARACTERS]} not found, "
            f"must be one of [{', '.join(handles)}]"
        )
