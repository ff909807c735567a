"""Test modules whose asserts pytest rewrites once, before the processes of pytest-xdist start.

All of these import the modules in the same order, so in a new clone each of them would rewrite
every module at the same time, for six seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from _pytest.assertion.rewrite import (
    PYC_TAIL,
    _rewrite_test,
    _write_pyc,
    assertstate_key,
    get_cache_dir,
    try_makedirs,
)

PROCESSES = 2


def rewrite_tests(config: pytest.Config) -> None:
    """Rewrite each module of ``config.args`` that has no rewritten form yet.

    An error is left to the process that imports the module, which reports it.
    """
    missing = [file for file in _modules(config) if not rewritten_form(file).exists()]
    children = []
    for number in range(PROCESSES if missing else 0):
        pid = os.fork()
        if not pid:
            try:
                _rewrite(missing[number::PROCESSES], config)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


def rewritten_form(file: Path) -> Path:
    """Return the file in which pytest looks for the rewritten form of a module."""
    return get_cache_dir(file) / (file.stem + PYC_TAIL)


def _modules(config: pytest.Config) -> list[Path]:
    places = {config.invocation_params.dir / arg.split("::")[0] for arg in config.args}
    return sorted({file for place in places for file in _modules_in(place)})


def _modules_in(place: Path) -> Iterable[Path]:
    return place.rglob("test_*.py") if place.is_dir() else [place]


def _rewrite(files: Iterable[Path], config: pytest.Config) -> None:
    for file in files:
        source_hash, code = _rewrite_test(file, config)
        form = rewritten_form(file)
        if try_makedirs(form.parent):
            _write_pyc(config.stash[assertstate_key], code, source_hash, form)
