from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.errors import StartupError
from reattach.domain.ids import Seq, Token
from reattach.log.sqlite.journal import (
    HIGHEST_NUMBER,
    HIGHEST_SEQ,
    Append,
    Change,
    Create,
    Delete,
    Skip,
    TakeOver,
    Trim,
    pack,
    unpack,
)

numbers = st.integers(1, HIGHEST_NUMBER)
seqs = st.integers(0, HIGHEST_SEQ)
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(Create, numbers, seqs, st.text(max_size=50), st.one_of(st.just(1), seqs)),
    st.builds(TakeOver, numbers, seqs),
    st.builds(Append, numbers, seqs, st.lists(st.binary(max_size=50)), st.booleans()),
    st.builds(Trim, numbers, seqs),
    st.builds(Delete, numbers),
    st.builds(Skip, numbers, seqs, seqs),
)


@pytest.mark.promise("P4")
@given(st.lists(changes, max_size=20))
def test_unpacking_a_batch_returns_the_packed_changes(batch: list[Change]) -> None:
    assert list(unpack(b"".join(map(pack, batch)))) == batch


def test_a_change_of_a_later_version_is_refused() -> None:
    packed = bytearray(pack(Delete(1)))
    packed[0] = 99
    with pytest.raises(StartupError, match="kind 99"):
        list(unpack(bytes(packed)))


@pytest.mark.promise("P4")
@pytest.mark.parametrize(
    ("packed", "change"),
    [
        ("010003000000000007000000000000000200000000000000" + "72756e", Create(7, Token(2), "run")),
        ("020000000000000007000000000000000300000000000000", TakeOver(7, Token(3))),
        ("030001000100000007000000000000000900000000000000" + "01000000" + "78",
         Append(7, Seq(9), [b"x"], True)),
        ("040000000000000007000000000000000500000000000000", Trim(7, Seq(5))),
        ("050000000000000007000000000000000000000000000000", Delete(7)),
    ],
)  # fmt: skip
def test_the_journals_of_the_first_release_can_be_read(packed: str, change: Change) -> None:
    assert list(unpack(bytes.fromhex(packed))) == [change]
    assert pack(change) == bytes.fromhex(packed)
