"""Routes that are imported when a request for them comes."""

from importlib import import_module

from starlette.routing import BaseRoute


class LateRoutes:
    """The routes of some modules, all of whose paths begin with one of the prefixes.

    They are for operators, and for clients of single dialects. Few servers get such requests, and
    the models of their bodies take memory and time at the start.
    """

    def __init__(self, prefixes: tuple[str, ...], *modules: str) -> None:
        """``modules`` have a ``router`` each."""
        self._prefixes = prefixes
        self._modules = modules

    def begin(self, path: str) -> bool:
        """Return whether the path may be that of one of the routes."""
        return path.startswith(self._prefixes)

    def load(self) -> list[BaseRoute]:
        """Return the routes. The first call imports the modules, which takes some milliseconds."""
        return [route for name in self._modules for route in import_module(name).router.routes]
