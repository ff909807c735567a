"""Packed frame lengths, as both durable backends store them."""

from array import array
from collections.abc import Sequence
from sys import byteorder


def pack_lengths(lengths: Sequence[int]) -> bytes:
    """Pack ``lengths`` as unsigned 32-bit little-endian integers."""
    return _little_endian(array("I", lengths)).tobytes()


def unpack_lengths(packed: bytes) -> "array[int]":
    lengths = array("I")
    lengths.frombytes(packed)
    return _little_endian(lengths)


def _little_endian(numbers: "array[int]") -> "array[int]":
    if byteorder == "big":
        numbers.byteswap()
    return numbers
