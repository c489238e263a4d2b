"""How diskcache is used: which of its settings, and what its database may hold."""

from __future__ import annotations

from typing import Any, NoReturn

import diskcache

from krunch_plugins.errors import DatabaseDamaged

SETTINGS: dict[str, Any] = {
    "eviction_policy": "none",  # the default deletes the oldest history once 1 GB is reached
    "cull_limit": 0,
    "size_limit": 1 << 60,
    "statistics": 0,
    "tag_index": 0,
    "disk_min_file_size": 1 << 60,  # values in files are orphaned by a crash and lost by a rollback
    "sqlite_auto_vacuum": 0,
    "sqlite_cache_size": 2048,
    "sqlite_mmap_size": 0,  # a mapped file that is cut off kills the process
    "sqlite_secure_delete": 1,  # what is deleted is overwritten
}
"""Of `diskcache.Cache`."""

MUST_BE = ("eviction_policy", "cull_limit", "statistics", "tag_index", "disk_min_file_size")
"""Those of them that a database of ours has, whoever opens it."""


class InlineDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Text keys and inline bytes, nothing else: never a pickle, never a file, whatever the database says."""

    def put(self, key: object) -> tuple[str, bool]:
        """A key as it is stored. Raises TypeError for what is no text."""
        if type(key) is not str:
            raise TypeError(f"keys of the cold tier are str, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        """A key as it was put. Raises DatabaseDamaged for one that we cannot have put."""
        if not raw or type(key) is not str:
            raise DatabaseDamaged(self._directory, "a key of a kind that Krunch never writes")
        return key

    def store(self, value: object, read: object, key: object = None) -> tuple[int, int, None, memoryview]:  # noqa: ARG002
        """A value as it is stored. Raises TypeError for what is no bytes."""
        if read or type(value) is not bytes:
            raise TypeError(f"values of the cold tier are bytes, not {type(value).__name__}")
        return 0, diskcache.core.MODE_RAW, None, memoryview(value)

    def fetch(self, mode: object, filename: object, value: object, read: object) -> bytes:
        """A value as it was stored. Raises DatabaseDamaged for one that we cannot have stored."""
        if mode != diskcache.core.MODE_RAW or filename is not None or read or type(value) is not bytes:
            raise DatabaseDamaged(self._directory, "a value of a kind that Krunch never writes")
        return value

    def filename(self, key: object = None, value: object = None) -> NoReturn:  # noqa: ARG002 - diskcache's signature
        """Nothing has one: raises TypeError."""
        raise TypeError("the cold tier keeps no values in files")

    def remove(self, file_path: object) -> None:
        """Nothing: a file name can only stand in a database that somebody tampered with."""
