"""Positions that outlive a process: the OTID of a message, and the run and cursor of a reader."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

_log = logging.getLogger("reattach.client")
T = TypeVar("T")


class FileStorage(MutableMapping[str, str]):
    """A storage in a folder: a file for each key, replaced as a whole.

    A file that cannot be read as one of its own, as after a power cut, counts as absent. It is
    usable from several threads. The clients of several processes need a folder each, because
    they would mix their cursors.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)

    def __getitem__(self, key: str) -> str:
        kept = _read(self._file(key))
        if kept is None:
            raise KeyError(key)
        return kept[1]

    def __setitem__(self, key: str, value: str) -> None:
        file = self._file(key)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Two writers of one key must not share the file that replaces it.
        new = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.new")
        new.write_text(json.dumps({"key": key, "value": value}), "utf-8")
        new.replace(file)

    def __delitem__(self, key: str) -> None:
        try:
            self._file(key).unlink()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        for file in self._folder.glob("*.json"):
            kept = _read(file)
            if kept is not None:
                yield kept[0]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _file(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _read(file: Path) -> tuple[str, str] | None:
    """Return the key and the value in a file."""
    try:
        kept = json.loads(file.read_text("utf-8"))
        return str(kept["key"]), str(kept["value"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


class Position:
    """The kept position of one reader.

    It is a JSON object with ``otid`` and ``input`` of a message whose run is not known, or with
    ``run`` and ``seq``. A storage that raises exceptions keeps nothing, and changes nothing else;
    the first exception is logged.
    """

    def __init__(self, storage: MutableMapping[str, str] | None, key: str) -> None:
        self._storage = storage
        self._key = key

    def read(self) -> dict[str, Any]:
        """Return the position; empty if there is none."""
        text = self._attempt(lambda storage: storage.get(self._key))
        try:
            kept = json.loads(text or "{}")
        except ValueError:
            kept = None
        return kept if isinstance(kept, dict) else {}

    def keep(self, **position: Any) -> None:
        """Replace the position."""
        if self._storage is None:
            return
        text = json.dumps(position)
        self._attempt(lambda storage: storage.__setitem__(self._key, text))

    def forget(self) -> None:
        self._attempt(lambda storage: storage.pop(self._key, None))

    def _attempt(self, use: Callable[[MutableMapping[str, str]], T]) -> T | None:
        if self._storage is None:
            return None
        try:
            return use(self._storage)
        except Exception:  # noqa: BLE001  the storage is the application's own
            _log.warning("The storage of the client failed; positions are not kept.", exc_info=True)
            self._storage = None
            return None
