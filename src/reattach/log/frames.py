"""Packed lengths and ends of frames, as both durable backends store them."""

from array import array
from collections.abc import Sequence
from sys import byteorder


def pack_numbers(numbers: Sequence[int]) -> bytes:
    """Pack ``numbers`` as unsigned 32-bit little-endian integers."""
    return _little_endian(array("I", numbers)).tobytes()


def unpack_numbers(packed: bytes) -> "array[int]":
    numbers = array("I")
    numbers.frombytes(packed)
    return _little_endian(numbers)


def _little_endian(numbers: "array[int]") -> "array[int]":
    if byteorder == "big":
        numbers.byteswap()
    return numbers
