"""Positions that outlive a process: the OTID of a message, and the run and cursor of a reader."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from reattach.client.json import object_of

_log = logging.getLogger("reattach.client")
T = TypeVar("T")

_CHANGING: Final = threading.Lock()
"""Held while a position changes, because clients in several threads may share a storage."""


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
    """The kept position of the readers of one conversation, or of one run.

    It is a JSON object: ``run``, the ``seq`` that was processed and whether the run ``is_over``,
    and in ``sent`` the input of each message whose run is not known, by its OTID. The newest
    reader to know its run has the position; the others change nothing of that. ``of_run``: it is
    forgotten at the end of the run.

    A storage that raises exceptions keeps nothing, and changes nothing else; the first exception
    is logged.
    """

    def __init__(
        self,
        storage: MutableMapping[str, str] | None,
        key: str,
        *,
        of_run: bool = False,
    ) -> None:
        self._storage = storage
        self._key = key
        self._of_run = of_run

    def read(self) -> dict[str, Any]:
        """Return the position; empty if there is none."""
        text = self._attempt(lambda storage: storage.get(self._key))
        return object_of(text or "{}") or {}

    def note_sent(self, otid: str, text: str) -> None:
        """Note a message whose run is not known."""
        with self._changed() as kept:
            kept["sent"] = {**kept.get("sent", {}), otid: text}

    def take(self, run_id: str, otid: str | None) -> None:
        """Keep a run instead of the one before, and instead of the message that began it."""
        with self._changed() as kept:
            _drop_sent(kept, otid)
            kept["run"] = run_id

    def keep(self, run_id: str, seq: int, *, is_over: bool) -> None:
        """Keep the cursor in a run, unless another run has the position."""
        with self._changed() as kept:
            if kept.setdefault("run", run_id) == run_id:
                kept.update(seq=seq, is_over=is_over)

    def forget(self, run_id: str | None, otid: str | None) -> None:
        """Forget a message, and a run unless another one has the position."""
        with self._changed() as kept:
            _drop_sent(kept, otid)
            if run_id is not None and kept.get("run") == run_id:
                for name in ("run", "seq", "is_over"):
                    kept.pop(name, None)

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """Read the position, let the caller change it, and write it."""
        if self._storage is None:
            yield {}
            return
        with _CHANGING:
            kept = self.read()
            yield kept
            if not kept or (self._of_run and kept.get("is_over")):
                self._attempt(lambda storage: storage.pop(self._key, None))
            else:
                text = json.dumps(kept)
                self._attempt(lambda storage: storage.__setitem__(self._key, text))

    def _attempt(self, use: Callable[[MutableMapping[str, str]], T]) -> T | None:
        if self._storage is None:
            return None
        try:
            return use(self._storage)
        except Exception:  # noqa: BLE001  the storage is the application's own
            _log.warning("The storage of the client failed; positions are not kept.", exc_info=True)
            self._storage = None
            return None


def _drop_sent(kept: dict[str, Any], otid: str | None) -> None:
    sent = {one: text for one, text in kept.pop("sent", {}).items() if one != otid}
    if sent:
        kept["sent"] = sent
