"""Libraries that import more than a server uses of them, imported without the rest."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict


def import_structlog() -> None:
    """Import structlog without Rich, with which it would print tracebacks that are not used here.

    Call it before modules that import structlog, and only in a process of Reattach's own, whose
    other threads import nothing meanwhile.
    """
    with _missing("rich"):
        import_module("structlog")


def import_fastapi() -> None:
    """Import FastAPI without building the 50 models with which it describes an API.

    They are built when the description is asked for. Nor does FastAPI import ``pydantic.v1`` to see
    whether arguments of routes are models of it: before others have imported it, there are none.

    Call it as ``import_structlog``.
    """
    with _models_built_on_first_use():
        import_module("fastapi")
    utils: Any = import_module("fastapi.utils")
    look: Callable[[Any], bool] = utils.annotation_is_pydantic_v1
    utils.annotation_is_pydantic_v1 = lambda type_: "pydantic.v1" in sys.modules and look(type_)


@contextmanager
def _missing(package: str) -> Iterator[None]:
    """Let code that can do without the package find that it is not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


@contextmanager
def _models_built_on_first_use() -> Iterator[None]:
    """Let models that are defined here build their validators when they are first used."""
    given = BaseModel.model_config
    BaseModel.model_config = ConfigDict(defer_build=True)
    try:
        yield
    finally:
        BaseModel.model_config = given
