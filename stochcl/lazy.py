"""Properties that are computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class cached_property(Generic[T]):  # noqa: N801 - as functools calls its own
    """A property that is computed on first use, like ``functools.cached_property`` but without its lock.

    Up to Python 3.11 that has one lock per class. A process forked while another thread computes the property
    inherits the lock locked, and waits forever. Here two threads may compute the value at the same time; the first
    value stays.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> Self | T:
        if instance is None:
            return self
        found: Self | T = instance.__dict__.setdefault(self._name, self._compute(instance))
        return found
