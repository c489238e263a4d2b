"""Putting a file into place so that nothing else is ever seen there, and keeping the one before until it is certain."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from krunch_plugins.errors import SnapshotError
from krunch_plugins.snapshots import formats, journal

if TYPE_CHECKING:
    from collections.abc import Callable

STALE_SECONDS = 3600
"""A temporary file older than this belongs to a process that died; the next save beside it removes it."""


def backup_path(path: Path) -> Path:
    """Where the snapshot before the one at `path` lies while that one is being saved."""
    return path.with_name(path.name + ".backup")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, readable for their owner only; nothing happens if it is there.

    Raises:
        SnapshotError: it cannot be made.
    """
    try:
        for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)  # with `parents`, those above would get the default mode
        folder.mkdir(exist_ok=True)  # raises where a file has the name
    except OSError as error:
        raise SnapshotError(folder, f"folder cannot be made: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Put a file into place: temporary file, sync, rename. Nothing else is ever seen at `path`.

    Raises:
        OSError: as the file system has it; `path` is untouched.
    """
    _put(path, data, before_rename=lambda: None)


def _put(path: Path, data: bytes, before_rename: Callable[[], None]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        temporary.replace(path)
    except BaseException:  # an interrupt too leaves no file behind
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def commit(path: Path, data: bytes) -> None:
    """Save `data` at `path`, with what was there as the backup until it has been read back."""
    for stale in temporary_files(path):
        with contextlib.suppress(FileNotFoundError):  # whoever writes it may have renamed it by now
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                stale.unlink()
    backup = backup_path(path)
    _put(path, data, before_rename=lambda: _keep_backup(path, backup))
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return  # without hard links: another save has begun, and what we saved is its backup now
    if found != data:
        formats.check(found, path)  # another process may have saved in between; its snapshot is as good as ours
    backup.unlink(missing_ok=True)


def _keep_backup(path: Path, backup: Path) -> None:
    """Make what is at `path` the backup, unless it is damaged and the backup is what a dead save has left."""
    if backup.exists() and not _intact(path):
        return
    link = path.with_name(f".{backup.name}.{secrets.token_hex(4)}.tmp")
    while path.exists():
        try:
            os.link(path, link)
        except FileNotFoundError:
            continue  # another save replaced the file at this very moment: take the new one
        except OSError:  # no hard links on this file system: there is a moment without `path`, and `read` knows it
            with contextlib.suppress(FileNotFoundError):
                path.replace(backup)
            return
        link.replace(backup)
        link.unlink(missing_ok=True)  # renaming onto a link of the same file does nothing, and leaves both
        return


def _intact(path: Path) -> bool:
    try:
        formats.check(path.read_bytes(), path)
    except (SnapshotError, OSError):
        return False
    return True


def temporary_files(path: Path) -> list[Path]:
    """Files that a save to this path (or of its backup or changes) has begun and not yet renamed."""
    names = (path.name, backup_path(path).name, journal.path_for(path).name)
    pattern = re.compile(rf"\.(?:{'|'.join(map(re.escape, names))})\.[a-z0-9_]+\.tmp")
    try:
        with os.scandir(path.parent) as entries:
            return [Path(one.path) for one in entries if pattern.fullmatch(one.name)]
    except FileNotFoundError:
        return []


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable; only POSIX systems have a way to ask for it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
