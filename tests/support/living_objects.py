"""The objects of this process, for tests of what is kept in memory."""

import gc
from typing import TypeVar

T = TypeVar("T")


def living(kind: type[T]) -> list[T]:
    """Return all that exist, also those that earlier tests have left.

    ``isinstance`` would ask weak proxies of other libraries for the class of an object that may be
    gone, and raise ReferenceError.
    """
    return [one for one in gc.get_objects() if issubclass(type(one), kind)]
