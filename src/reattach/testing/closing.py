"""A base class of resources that tests open and close."""

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """A resource that its context manager closes on exit."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Release everything that it holds."""
