"""Small pieces that a history of millions of operations is made of: names as numbers, and maps from offset to value.

Everything is kept in typed arrays: an operation costs some tens of bytes, and whole slices are compared at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

NOTHING = -1
"""Stands for "no value", "no offset", "nobody" in every column."""

_PAGE = 1024
_EMPTY = array("i", [NOTHING]) * _PAGE


class Names(dict[str, int]):
    """Numbers names in the order in which they are first asked for. `names[name]` never fails."""

    def __missing__(self, name: str) -> int:
        number = len(self)
        self[name] = number
        return number


class OffsetMap:
    """Value ids by offset. Offsets may begin anywhere and leave gaps; memory grows with the pages touched."""

    __slots__ = ("_pages", "end", "start")

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self.start = NOTHING
        """Lowest offset that was put; NOTHING while empty."""
        self.end = 0
        """One above the highest offset that was put."""

    def put(self, offset: int, ids: array[int]) -> list[int]:
        """Put values at consecutive offsets; what is there already stays.

        Returns:
            Positions in `ids` of values whose offset already holds another one.
        """
        count = len(ids)
        if self.start == NOTHING or offset < self.start:
            self.start = offset
        self.end = max(self.end, offset + count)
        different: list[int] = []
        done = 0
        while done < count:
            number, at = divmod(offset + done, _PAGE)
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = _EMPTY[:]
            chunk = ids if count <= _PAGE - at and not done else ids[done : done + _PAGE - at]
            stop = at + len(chunk)
            there = page[at:stop]
            if there == _EMPTY[: len(chunk)]:
                page[at:stop] = chunk
            elif there != chunk:
                different += [done + position for position in _mix(page, at, chunk)]
            done += len(chunk)
        return different

    def get(self, offset: int) -> int:
        """Value id at an offset, or NOTHING."""
        number, at = divmod(offset, _PAGE)
        page = self._pages.get(number)
        return NOTHING if page is None else page[at]

    def holds(self, offset: int, ids: array[int]) -> bool:
        """Exactly these values are at consecutive offsets."""
        number, at = divmod(offset, _PAGE)
        if at + len(ids) <= _PAGE:
            page = self._pages.get(number)
            return page is not None and page[at : at + len(ids)] == ids
        return all(self.get(offset + position) == value for position, value in enumerate(ids))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(offset, value id), by offset."""
        for number in sorted(self._pages):
            base = number * _PAGE
            for at, value in enumerate(self._pages[number]):
                if value != NOTHING:
                    yield base + at, value

    def count(self, start: int, end: int) -> int:
        """How many offsets of start (inclusive) to end (exclusive) hold a value."""
        found = 0
        for number in self._touched(start, end):
            base = number * _PAGE
            found += sum(value != NOTHING for value in self._pages[number][max(0, start - base) : max(0, end - base)])
        return found

    def first_held(self, start: int, end: int) -> int:
        """Lowest offset in [start, end) that holds a value, or NOTHING."""
        for number in self._touched(start, end):
            base = number * _PAGE
            for at in range(max(0, start - base), min(_PAGE, end - base)):
                if self._pages[number][at] != NOTHING:
                    return base + at
        return NOTHING

    def first_hole(self, start: int, end: int) -> int:
        """Lowest offset in [start, end) that holds no value, or NOTHING."""
        offset = start
        while offset < end:
            number, at = divmod(offset, _PAGE)
            page = self._pages.get(number)
            if page is None:
                return offset
            for position in range(at, min(_PAGE, end - number * _PAGE)):
                if page[position] == NOTHING:
                    return number * _PAGE + position
            offset = (number + 1) * _PAGE
        return NOTHING

    def _touched(self, start: int, end: int) -> Iterator[int]:
        """Existing pages in [start, end), ascending; never a walk over a gap of 2^60 offsets."""
        first, last = start // _PAGE, (end - 1) // _PAGE
        if last - first < len(self._pages):
            return (number for number in range(first, last + 1) if number in self._pages)
        return iter(sorted(number for number in self._pages if first <= number <= last))


def _mix(page: array[int], at: int, chunk: array[int]) -> list[int]:
    """Fill what is empty; return the positions that hold something else."""
    different = []
    for position, value in enumerate(chunk):
        there = page[at + position]
        if there == NOTHING:
            page[at + position] = value
        elif there != value:
            different.append(position)
    return different
