"""The lengths of frames as bytes, as both durable logs store them."""

from array import array
from collections.abc import Sequence
from sys import byteorder


def pack_lengths(lengths: Sequence[int]) -> bytes:
    """Unsigned 32-bit integers, little-endian."""
    return _little_endian(array("I", lengths)).tobytes()


def unpack_lengths(packed: bytes) -> "array[int]":
    lengths = array("I")
    lengths.frombytes(packed)
    return _little_endian(lengths)


def _little_endian(numbers: "array[int]") -> "array[int]":
    if byteorder == "big":
        numbers.byteswap()
    return numbers
