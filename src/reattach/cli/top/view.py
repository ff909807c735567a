"""The choices of the person at the table: order, filter, and the selected run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from reattach.cli.remote.tables import moment_of

Run = Mapping[str, Any]
Act = Literal["quit", "cancel"]

ORDERS: Final[Mapping[str, Callable[[Run], Any]]] = {
    "rate": lambda run: run["rate"] or 0.0,
    "events": lambda run: run["events"] or 0,
    "age": lambda run: -moment_of(run["created_at"]).timestamp(),
    "readers": lambda run: run["readers"],
    "attempts": lambda run: run["attempts"],
    "first": lambda run: run["first_event_seconds"] or 0.0,
    "model": lambda run: run["model"] or "",
    "owner": lambda run: run["owner"] or "",
}
"""The columns by which runs are sorted, and their values."""

_DOWNWARDS: Final = frozenset({"rate", "events", "age", "readers", "attempts", "first"})
"""Those of which people look for the largest values."""

_SEARCHED: Final = ("id", "status", "model", "agent_id", "agent_name", "tenant", "owner")


@dataclass
class View:
    """The order, filter and selection of the runs, and the keys that change them."""

    order: str = "rate"
    is_turned: bool = False
    """Whether the order is the other way round."""
    filter: str = ""
    is_typing: bool = False
    """Whether keys go to the filter."""
    is_paused: bool = False
    asks: bool = False
    """Whether the next key answers the question whether to cancel the selected run."""
    selected: str | None = None
    """The id of the selected run."""
    note: str = ""
    """The result of the last act, in one line."""
    page_rows: int = 10
    _shown: Sequence[Run] = field(default_factory=list)

    @property
    def is_downwards(self) -> bool:
        """Whether the largest value is at the top."""
        return (self.order in _DOWNWARDS) is not self.is_turned

    def arrange(self, runs: Sequence[Run]) -> Sequence[Run]:
        """Return the runs that match the filter, in order. Runs of equal value stay in place."""
        wanted = self.filter.lower()
        matching = [run for run in runs if not wanted or wanted in _text_of(run)]
        matching.sort(key=lambda run: str(run["id"]))
        self._shown = sorted(matching, key=ORDERS[self.order], reverse=self.is_downwards)
        return self._shown

    def press(self, key: str) -> Act | None:
        """Take in a key, and return what it asks for beyond the view."""
        if self.asks:
            self.asks = False
            return "cancel" if key in {"y", "Y"} else None
        if self.is_typing:
            self._type(key)
            return None
        self.note = ""
        match key:
            case "q" | "Q":
                return "quit"
            case "s" | "S":
                names = list(ORDERS)
                step = 1 if key == "s" else -1
                self.order = names[(names.index(self.order) + step) % len(names)]
                self.is_turned = False
            case "r":
                self.is_turned = not self.is_turned
            case "/":
                self.is_typing = True
            case "escape":
                self.filter, self.selected = "", None
            case " " | "p":
                self.is_paused = not self.is_paused
            case "x":
                self.asks = self.selected is not None
                self.note = "" if self.asks else "Select a run with the arrow keys first."
            case _:
                self._move(key)
        return None

    def _type(self, key: str) -> None:
        if key == "enter":
            self.is_typing = False
        elif key == "escape":
            self.is_typing, self.filter = False, ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key

    def _move(self, key: str) -> None:
        steps = {"up": -1, "down": 1, "page up": -self.page_rows, "page down": self.page_rows}
        ids = [run["id"] for run in self._shown]
        if not ids or key not in {*steps, "home", "end"}:
            return
        last = len(ids) - 1
        if key in {"home", "end"}:
            at = 0 if key == "home" else last
        elif self.selected in ids:
            at = min(max(ids.index(self.selected) + steps[key], 0), last)
        else:
            at = 0
        self.selected = ids[at]


def _text_of(run: Run) -> str:
    return " ".join(str(run[name] or "") for name in _SEARCHED).lower()
