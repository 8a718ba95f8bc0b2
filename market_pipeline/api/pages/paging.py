"""A long list as pages, with the numbers of the pages to choose from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
_NEIGHBOURS = 2


@dataclass(frozen=True, slots=True)
class ListPage(Generic[Item]):
    """The items of page ``number`` of ``pages``; ``found`` of them are on all pages."""

    items: Sequence[Item]
    found: int
    number: int
    pages: int

    @property
    def shown_pages(self) -> list[int | None]:
        """The first page, the last one and those around this one; None where some are left out."""
        near = range(self.number - _NEIGHBOURS, self.number + _NEIGHBOURS + 1)
        shown = sorted({1, self.pages, *(at for at in near if 1 <= at <= self.pages)})
        numbers: list[int | None] = []
        for at in shown:
            if numbers and numbers[-1] != at - 1:
                numbers.append(None)
            numbers.append(at)
        return numbers


def cut_page(items: Sequence[Item], wanted: int, size: int) -> ListPage[Item]:
    """Return a page of items; a page beyond the last one is the last one."""
    pages = max(1, -(-len(items) // size))
    number = min(wanted, pages)
    return ListPage(items[(number - 1) * size : number * size], len(items), number, pages)
