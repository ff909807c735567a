"""The route of a request, found by the segments of its path."""

import asyncio
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from reattach.http.paths import path_of
from reattach.http.routing.late import LateRoutes


class RouteIndex:
    """An ASGI application in front of a router, which would try its routes one after the other.

    It finds the same route as the router, which answers all requests without one: an unknown path,
    another method, a missing slash. The routes are those that the router has at the first request,
    and ``late`` ones, which it adds to the router.
    """

    def __init__(self, router: APIRouter, late: Sequence[LateRoutes] = ()) -> None:
        self._router = router
        self._late = [*late]
        self._root = _Node()
        for place, route in enumerate(router.routes):
            self._add(place, route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = path_of(scope)
            if self._late:
                await self._add_late(path)
            for route in self.candidates(path):
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope["router"] = self._router
                    scope.update(found)
                    await route.handle(scope, receive, send)
                    return
        await self._router(scope, receive, send)

    async def _add_late(self, path: str) -> None:
        for late in [one for one in self._late if one.begin(path)]:
            # Live streams must not wait for the imports.
            routes = await asyncio.to_thread(late.load)
            if late in self._late:  # Else another request was faster.
                self._late.remove(late)
                for route in routes:
                    self._add(len(self._router.routes), route)
                    self._router.routes.append(route)

    def _add(self, place: int, route: BaseRoute) -> None:
        node = self._root
        if not isinstance(route, Route):  # It may match any path.
            node.spanning.append((place, route))
            return
        for segment in route.path.split("/"):
            if _SPANNING in segment:
                node.spanning.append((place, route))
                return
            node = node.below(_PARAMETER if "{" in segment else segment)
        node.routes.append((place, route))

    def candidates(self, path: str) -> list[BaseRoute]:
        """Return the routes that may match the path, in the order of the router."""
        nodes: Sequence[_Node] = [self._root]
        found: list[_Placed] = []
        for segment in path.split("/"):
            found += [placed for node in nodes for placed in node.spanning]
            nodes = [
                node.children[name]
                for node in nodes
                for name in (segment, _PARAMETER)
                if name in node.children
            ]
        for node in nodes:
            found += node.routes
        if len(found) > 1:
            found.sort(key=_place)
        return [route for _, route in found]


_SPANNING: Final = ":path}"
"""The end of a parameter that matches several segments."""

_PARAMETER: Final = "{}"
"""Stands for each segment with a parameter."""

_Placed = tuple[int, BaseRoute]
"""A route, and its place in the router."""


def _place(placed: _Placed) -> int:
    return placed[0]


class _Node:
    """The routes whose paths begin with the same segments."""

    __slots__ = ("children", "routes", "spanning")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.spanning: list[_Placed] = []
        """The routes that match all paths which go on from here."""
        self.routes: list[_Placed] = []
        """The routes that match paths which end here."""

    def below(self, segment: str) -> "_Node":
        return self.children.setdefault(segment, _Node())
