"""What an operator should know of the store of the event logs."""

from collections.abc import AsyncIterator

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import StartupError
from reattach.extras import install_hint
from reattach.log.open import REDIS_SCHEMES, redis_place
from reattach.redact import is_local


async def check_log(url: str) -> AsyncIterator[Diagnostic]:
    """Look at the store that the URL names, one thing after the other; it raises nothing."""
    scheme = url.partition(":")[0]
    if is_local(scheme):
        return  # The settings take no such URL, and say so.
    if scheme not in REDIS_SCHEMES:
        said = f"there is no event log of kind {scheme}:"
        yield Diagnostic("wrong", "event log", said, "Correct REATTACH_LOG_URL.")
        return
    try:
        from reattach.log.redis.checks import check_redis

        place = redis_place(url)
    except ImportError:
        remedy = install_hint("cluster")
        yield Diagnostic("wrong", "event log", "the driver of Redis is missing", remedy)
        return
    except StartupError as error:
        remedy = error.remedy or "Correct REATTACH_LOG_URL."
        yield Diagnostic("wrong", "event log", error.fact, remedy)
        return
    async for diagnostic in check_redis(
        place.url, prefix=place.prefix, wait_replicas=place.wait_replicas
    ):
        yield diagnostic
