from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.errors import StartupError
from reattach.log.journal import (
    Append,
    Create,
    Delete,
    Record,
    TakeOver,
    Trim,
    pack,
    unpack,
)

numbers = st.integers(0, 2**63 - 1)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(Create, numbers, numbers, st.text(max_size=50)),
    st.builds(TakeOver, numbers, numbers),
    st.builds(Append, numbers, numbers, st.lists(st.binary(max_size=50)), st.booleans()),
    st.builds(Trim, numbers, numbers),
    st.builds(Delete, numbers),
)


@pytest.mark.promise("P4")
@given(st.lists(records, max_size=20))
def test_a_batch_gives_back_the_records_that_were_packed(batch: list[Record]) -> None:
    assert list(unpack(b"".join(map(pack, batch)))) == batch


def test_a_record_of_a_later_version_is_refused() -> None:
    packed = bytearray(pack(Delete(1)))
    packed[0] = 99
    with pytest.raises(StartupError, match="kind 99"):
        list(unpack(bytes(packed)))
