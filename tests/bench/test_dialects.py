"""The table of what an event costs in each dialect."""

import pytest

from bench.dialects import costs, sockets
from bench.options import Options


def test_every_dialect_has_its_cost_live_replayed_and_over_a_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs, "QUICK_EVENT_COUNT", 20)
    monkeypatch.setattr(sockets, "QUICK_RUNS", 2)
    chapter = costs.main(Options(quick=True))
    rows = chapter.tables[0].rows
    assert [row[0] for row in rows] == [*costs.FRAMINGS, *costs.DIALECTS]
    assert all(float(cell.replace(",", "")) is not None for row in rows for cell in row[1:])
    assert {len(row) for row in rows} == {7}
