"""Checks of the event log's store, for ``reattach doctor``."""

from collections.abc import AsyncIterator

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import StartupError
from reattach.extras import install_hint
from reattach.log.open import REDIS_SCHEMES, redis_place
from reattach.redact import is_local


async def check_log(url: str) -> AsyncIterator[Diagnostic]:
    """Check the store that ``url`` names and yield diagnostics as they come. Never raises."""
    scheme = url.partition(":")[0]
    if is_local(scheme):
        return  # The settings already refuse such a URL.
    if scheme not in REDIS_SCHEMES:
        problem = f"unknown scheme {scheme}:"
        yield Diagnostic("wrong", "event log", problem, "Correct REATTACH_LOG_URL.")
        return
    try:
        from reattach.log.redis.checks import check_redis

        place = redis_place(url)
    except ImportError:
        remedy = install_hint("cluster")
        yield Diagnostic("wrong", "event log", "the Redis driver is not installed", remedy)
        return
    except StartupError as error:
        remedy = error.remedy or "Correct REATTACH_LOG_URL."
        yield Diagnostic("wrong", "event log", error.fact, remedy)
        return
    async for diagnostic in check_redis(
        place.url, prefix=place.prefix, wait_replicas=place.wait_replicas
    ):
        yield diagnostic
