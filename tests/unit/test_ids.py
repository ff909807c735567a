"""The ids that a server makes for its rows."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from reattach.domain import ids

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

MAKERS: tuple[Callable[[], str], ...] = (
    ids.new_agent_id,
    ids.new_block_id,
    ids.new_conversation_id,
    ids.new_message_id,
    ids.new_run_id,
    ids.new_step_id,
    ids.new_rising_uuid,
)
MILLISECOND_NS = 1_000_000


def set_clock(monkeypatch: pytest.MonkeyPatch, milliseconds: int) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: milliseconds * MILLISECOND_NS)


def test_ids_rise_with_the_time_at_which_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in MAKERS:
        made = []
        for milliseconds in (0, 1, 0xFFFF_FFFF, 1_795_000_000_000, 1_795_000_000_001, 2**48 - 1):
            set_clock(monkeypatch, milliseconds)
            made.append(make())
        assert made == sorted(made), make


def test_ids_have_the_form_of_a_version_4_uuid_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for milliseconds in (-1, 0, 1_795_000_000_000, 2**48, 2**63):
        set_clock(monkeypatch, milliseconds)
        for _ in range(100):
            assert re.fullmatch(ids.UUID4, ids.new_rising_uuid())
        assert ids.is_run_id(ids.new_run_id())
        assert ids.is_agent_id(ids.new_agent_id())
        assert ids.is_conversation_id(ids.new_conversation_id())


def test_ids_of_one_millisecond_differ_in_all_their_other_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_clock(monkeypatch, 1_795_000_000_000)
    made = [int(ids.new_rising_uuid().replace("-", ""), 16) for _ in range(1000)]
    always_set = always_clear = (1 << 128) - 1
    for number in made:
        always_set &= number
        always_clear &= ~number
    random_bits = ~(always_set | always_clear) & ((1 << 128) - 1)
    assert random_bits.bit_count() == 74
    assert len(set(made)) == len(made)


def test_ids_stay_unique_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for milliseconds in (1_795_000_000_000, 1_794_999_999_000) * 500:
        set_clock(monkeypatch, milliseconds)
        made.append(ids.new_run_id())
    assert len(set(made)) == len(made)
