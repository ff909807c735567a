"""Which log a URL means."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote

from reattach.errors import StartupError
from reattach.log.base import Log
from reattach.log.memory import MemoryLog
from reattach.log.sqlite import SqliteLog

Options = Mapping[str, str]


async def open_log(url: str) -> Log:
    """Open the log that ``url`` names: its backend's scheme, a place, and options.

    - ``memory:`` holds everything in this process.
    - ``sqlite:PATH?durability=process|power`` is a file; ``?`` and ``%`` in its path are escaped
      as in every URL. The default is ``process``.

    Raises StartupError if the URL makes no sense, or the backend does not start.
    """
    scheme, _, rest = url.partition(":")
    if scheme not in _BACKENDS:
        known = ", ".join(f"{known}:" for known in _BACKENDS)
        raise StartupError(f"There is no event log of kind {scheme}:. Known are {known}")
    place, _, query = rest.partition("?")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise StartupError(f"The options of the event log can not be read: {query}") from error
    return await _BACKENDS[scheme](unquote(place), options)


async def _memory(place: str, options: Options) -> Log:
    if place or options:
        raise StartupError("The event log memory: has neither a place nor options.")
    return MemoryLog()


async def _sqlite(place: str, options: Options) -> Log:
    if not place:
        raise StartupError("The event log sqlite: needs a file, as in sqlite:/data/reattach.db")
    unknown = options.keys() - {"durability"}
    if unknown:
        raise StartupError(
            f"The event log sqlite: has no option {', '.join(sorted(unknown))}. "
            "Known is durability."
        )
    match options.get("durability", "process"):
        case "process":
            return await SqliteLog.open_file(place, durability="process")
        case "power":
            return await SqliteLog.open_file(place, durability="power")
        case durability:
            raise StartupError(
                f"The event log sqlite: has no durability {durability}. Known are process, power."
            )


_BACKENDS: Final[Mapping[str, Callable[[str, Options], Awaitable[Log]]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
}
