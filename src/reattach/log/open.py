"""Opening the event log that a URL names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode

from reattach.domain.errors import StartupError
from reattach.extras import install_hint
from reattach.log.base import Log
from reattach.log.memory import MemoryLog
from reattach.log.sqlite.log import SqliteLog

Options = Mapping[str, str]


async def open_log(
    url: str, *, retention_seconds: float = 24 * 3600.0, after_power_cut: bool = False
) -> Log:
    """Open the log that ``url`` names by the scheme of a backend, a place and options.

    - ``memory:`` keeps everything in this process.
    - ``sqlite:PATH?durability=process|power`` is a file; ``?`` and ``%`` in its path are
      percent-encoded. The default durability is ``process``.
    - ``redis://USER:PASSWORD@HOST:PORT/DB`` and the other schemes of ``RedisLog.connect`` are
      Redis or Valkey. Options are ``prefix=reattach``, ``wait_replicas=0`` and those of redis-py.
      This backend needs the extra ``cluster``.

    On Redis, closed logs expire some time after ``retention_seconds``; other backends delete
    nothing by themselves. ``after_power_cut`` says that a log file of this machine may have lost
    its last appends.

    Raises:
        StartupError: The URL is not valid, or the backend does not start.
    """
    scheme = url.partition(":")[0]
    if scheme in REDIS_SCHEMES:
        return await _redis(url, retention_seconds)
    place, options = _split(url)
    place = unquote(place.removeprefix(f"{scheme}:"))
    if scheme == "memory":
        return _memory(place, options)
    if scheme == "sqlite":
        return await _sqlite(place, options, after_power_cut)
    known = ", ".join(f"{known}:" for known in ("memory", "sqlite", *REDIS_SCHEMES))
    raise StartupError(
        f"The event log's URL has the unknown scheme '{scheme}:'.",
        remedy=f"Use one of {known}",
    )


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """The URL of a Redis server and the options of the log on it."""

    url: str
    prefix: str
    wait_replicas: int


def redis_place(url: str) -> RedisPlace:
    """Split the URL of a log on Redis.

    Raises:
        StartupError: The URL is not valid.
    """
    place, options = _split(url)
    rest = {name: value for name, value in options.items() if name not in _REDIS_OPTIONS}
    replicas = options.get("wait_replicas", "0")
    if not replicas.isdecimal():
        raise StartupError(
            f"wait_replicas must be a number, and is '{replicas}'.",
            remedy="Correct it in REATTACH_LOG_URL.",
        )
    return RedisPlace(
        f"{place}?{urlencode(rest)}" if rest else place,
        options.get("prefix", "reattach"),
        int(replicas),
    )


def _split(url: str) -> tuple[str, Options]:
    place, _, query = url.partition("?")
    try:
        return place, dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise StartupError(
            "The options of the event log's URL cannot be parsed.",
            remedy="Correct REATTACH_LOG_URL: options have the form ?name=value&name=value.",
        ) from error


def _memory(place: str, options: Options) -> Log:
    if place or options:
        raise StartupError("The event log memory: takes no path and no options.")
    return MemoryLog()


async def _sqlite(place: str, options: Options, after_power_cut: bool) -> Log:
    if not place:
        raise StartupError(
            "The event log sqlite: needs a file.",
            remedy="Use a URL such as sqlite:/data/events.db.",
        )
    unknown = options.keys() - {"durability"}
    if unknown:
        raise StartupError(
            f"The event log sqlite: has no option {', '.join(sorted(unknown))}.",
            remedy="Its only option is durability.",
        )
    match options.get("durability", "process"):
        case "process" | "power" as durability:
            return await SqliteLog.open_file(
                place, durability=durability, after_power_cut=after_power_cut
            )
        case durability:
            raise StartupError(
                f"The event log sqlite: has no durability '{durability}'.",
                remedy="Use process or power.",
            )


async def _redis(url: str, retention_seconds: float) -> Log:
    try:
        from reattach.log.redis.log import RedisLog
    except ImportError as error:
        raise StartupError(
            "The event log on Redis needs a package that is not installed.",
            remedy=install_hint("cluster"),
        ) from error
    place = redis_place(url)
    return await RedisLog.connect(
        place.url,
        prefix=place.prefix,
        retention_seconds=retention_seconds,
        wait_replicas=place.wait_replicas,
    )


_REDIS_OPTIONS: Final = {"prefix", "wait_replicas"}

REDIS_SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
