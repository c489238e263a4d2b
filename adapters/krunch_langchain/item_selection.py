"""Which items a search is about: those below a prefix that pass a filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from krunch_langchain.item_log import Entry, ItemLog
    from krunch_langchain.namespaces import Namespace, Namespaces

    Place = tuple[Namespace, str]
    Test = Callable[[Entry], bool]


@dataclass(frozen=True, slots=True)
class Selection:
    """The items that a search is about.

    Attributes:
        namespaces: where they are.
        names: the namespaces below the prefix, in order, as `Namespaces.below` gives them.
        passes: what an item has to pass; None: nothing.
    """

    namespaces: Namespaces
    names: Mapping[Namespace, int]
    passes: Test | None

    def log(self, name: Namespace) -> ItemLog:
        """The items of one namespace."""
        return self.namespaces.log(name)

    def items(self, most: int | None = None, *, without: Collection[Place] = ()) -> dict[Place, Entry]:
        """The items, in the order in which they were first put, namespace by namespace.

        Args:
            most: only the first so many.
            without: but not these.
        """
        found: dict[Place, Entry] = {}
        for name in self.names:
            if most is not None and len(found) >= most:
                break
            left = None if most is None else most - len(found)
            keys = {key for other, key in without if other == name}
            found |= {(name, key): entry for key, entry in self.log(name).items(self.passes, left, keys).items()}
        return found
