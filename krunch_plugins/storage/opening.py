"""Where a store lies on disk: its directory, its lock, and what happens if the database cannot be read."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from krunch_plugins.errors import DatabaseDamaged, FrameDamaged, StoreBusy, StoreError, StoreFull, StoreUnavailable
from krunch_plugins.storage.cold import DATABASE, DiskTier
from krunch_plugins.storage.ledger import Ledger
from krunch_plugins.storage.records import ROOT, Root

try:
    import fcntl
except ImportError:  # Windows, which does not let an open file be replaced in the first place
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

    from krunch_plugins.storage.codecs import CodecName
    from krunch_plugins.storage.cold import ColdTier, Durability

_LOCK = "in-use.lock"
_QUARANTINE = "quarantine"
_BEGUN = "repair"
"""Where a database that is to replace a damaged one is written."""
_WHOLE = "repaired"
"""Its folder's name from the moment on when it is whole and on disk."""


def default_directory() -> Path:
    """`KRUNCH_HOME`, else the platform's place for a user's data."""
    home = os.environ.get("KRUNCH_HOME")
    return Path(home) if home else platformdirs.user_data_path("krunch", appauthor=False)


def place(directory: str | Path | None) -> Path:
    """The store's directory, made for its owner only if it is missing.

    Raises:
        StoreUnavailable: it cannot be made, or is no directory.
    """
    path = (Path(directory) if directory is not None else default_directory()).expanduser().absolute()
    try:
        if not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(str(path), f"it cannot be made ({error.strerror}); choose another directory") from error
    return path


class Opened:
    """The cold tier of an open store, and the ledger over it.

    A damaged database does not keep the store from being opened, because `check(repair=True)` is a method of it; every
    use of `ledger` raises then.

    Args:
        directory: the store's directory, or None with `cold`.
        cold: a tier of another kind.
        durability: for the tier on disk.
        codec: how new frames are written.
        quota: bytes per tenant.
    """

    def __init__(
        self, directory: Path | None, cold: ColdTier | None, durability: Durability, codec: CodecName, quota: int | None
    ) -> None:
        self.directory = directory
        self._durability, self._codec, self._quota = durability, codec, quota
        self._cold = cold
        self._ledger: Ledger | None = None
        self.broken: StoreError | None = None
        self._lock_file = self._share()
        try:
            self._finish_repair()
            self._open()
        except BaseException:  # an interrupt too must not keep others from the directory
            self._unshare()
            raise

    @property
    def ledger(self) -> Ledger:
        """The ledger. Raises DatabaseDamaged or FrameDamaged if there is none because of damage."""
        if self._ledger is None:
            assert self.broken is not None
            raise self.broken
        return self._ledger

    def size(self) -> int:
        """Bytes on disk."""
        return self._cold.size() if self._cold is not None else 0

    def close(self) -> None:
        """Let go of the tier and of the lock."""
        if self._cold is not None:
            self._cold.close()
        self._unshare()

    def integrity(self) -> str:
        """What the database's own check says, "ok" if it has none."""
        if isinstance(self._cold, DiskTier):
            try:
                return self._cold.integrity()
            except DatabaseDamaged as error:
                return error.why
        return "ok" if self.broken is None else str(self.broken)

    def fill_anew(self, frames: dict[str, bytes]) -> None:
        """Put a new database with these frames in place of the damaged one, which is kept in the quarantine.

        Only within `alone`, in which the frames were read. Killed at any moment, it leaves the damaged database and its
        log, or else a whole new one that the next to open the store puts into place.

        Raises:
            StoreFull, StoreUnavailable: it cannot be written; the damaged database is untouched.
        """
        if self.directory is None:
            raise self.broken or StoreError("only a store in a directory can be filled anew")
        if self._cold is not None:
            self._cold.close()
        begun, whole = self.directory / _BEGUN, self.directory / _WHOLE
        for folder in (begun, whole):
            shutil.rmtree(folder, ignore_errors=True)
        begun.mkdir(mode=0o700)
        tier = DiskTier(begun, "power")
        with tier.transaction():
            for key, frame in frames.items():
                tier.put(key, frame)
        tier.close()
        log = begun / (DATABASE + "-wal")
        if log.exists() and log.stat().st_size:
            raise StoreFull(str(begun))  # closing moves the log into the database unless there is no room for it
        aside = self.directory / _QUARANTINE / f"database-{time.time_ns()}"
        aside.mkdir(parents=True, mode=0o700)
        for name in (DATABASE, DATABASE + "-wal"):
            if (self.directory / name).exists():
                shutil.copy2(self.directory / name, aside / name)
                _sync(aside / name)
        for path in (aside, aside.parent, begun / DATABASE, begun):
            _sync(path)
        begun.replace(whole)
        _sync(self.directory)
        self._put_in_place(self.directory, whole)
        self._cold = None
        self._open(must=True)

    @staticmethod
    def _put_in_place(directory: Path, whole: Path) -> None:
        # The old log must be gone before the new database comes: SQLite would replay it over the new pages.
        for name in (DATABASE + "-wal", DATABASE + "-shm"):
            (directory / name).unlink(missing_ok=True)
        _sync(directory)
        (whole / DATABASE).replace(directory / DATABASE)
        _sync(directory)
        shutil.rmtree(whole, ignore_errors=True)

    def _finish_repair(self) -> None:
        """Go on where a repair was killed. While it was at work, nobody else could have the store open."""
        if self.directory is None or self._lock_file is None:
            return
        whole = self.directory / _WHOLE
        if (whole / DATABASE).exists():
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)  # those who hold it are here, too, or have just been
            try:
                if (whole / DATABASE).exists():
                    self._put_in_place(self.directory, whole)
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_SH)
        for left in (self.directory / _BEGUN, whole):
            if left.exists():  # text that nobody would ever forget
                shutil.rmtree(left, ignore_errors=True)

    def reopen(self) -> None:
        """Try again after a repair within the database."""
        self._open(must=True)

    def database_files(self) -> tuple[Path, Path] | None:
        """The database and its log, if the tier lies in a directory."""
        return (self.directory / DATABASE, self.directory / (DATABASE + "-wal")) if self.directory else None

    @property
    def cold(self) -> ColdTier | None:
        """The tier, as far as it could be opened."""
        return self._cold

    def quarantined(self) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of what lies in quarantine: frames, then whole databases."""
        cold = self.ledger.cold
        for key in sorted(key for key in list(cold.keys()) if key.startswith("q/")):
            frame = cold.get(key)
            if frame is not None:
                yield key, frame
        for path in self._databases():
            for file in sorted(path.iterdir()):
                yield f"{path.name}/{file.name}", file.read_bytes()

    def drop_unattributed(self) -> int:
        """Remove what lies in quarantine and cannot be told to belong to another session than one being forgotten."""
        dropped = 0
        for path in self._databases():
            shutil.rmtree(path)
            dropped += 1
        ledger = self.ledger
        if ledger.shelf.need(ROOT, Root).orphans:
            with ledger.cold.transaction():
                root = ledger.shelf.need(ROOT, Root)
                dropped += sum(ledger.cold.delete(key) for key in root.orphans)
                root.orphans = []
                ledger.shelf.save(ROOT, root)
        return dropped

    def _databases(self) -> list[Path]:
        folder = self.directory / _QUARANTINE if self.directory else None
        return sorted(folder.iterdir()) if folder and folder.is_dir() else []

    def _open(self, *, must: bool = False) -> None:
        self.broken = None
        try:
            if self._cold is None and self.directory is not None:
                self._cold = DiskTier(self.directory, self._durability)
            assert self._cold is not None
            self._ledger = Ledger(self._cold, self._codec, self._quota)
        except (DatabaseDamaged, FrameDamaged) as error:
            if must:
                raise
            self.broken = error
            self._ledger = None

    def _share(self) -> int | None:
        if self.directory is None or fcntl is None:
            return None
        try:
            file = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            why = "another process is repairing it; open it again when that is done"
            raise StoreUnavailable(str(self.directory), why) from error
        except OSError as error:
            why = f"{error.strerror}; check its permissions and that its disk is writable"
            raise StoreUnavailable(str(self.directory), why) from error
        return file

    def _unshare(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one who has the store open; other threads of this process cannot change it meanwhile.

        Raises:
            StoreBusy: another process has the store open.
        """
        with self._cold.standstill() if isinstance(self._cold, DiskTier) else contextlib.nullcontext():
            if fcntl is None or self._lock_file is None:
                yield
                return
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                # The system has given up our share before it found that it cannot give us more.
                fcntl.flock(self._lock_file, fcntl.LOCK_SH)
                raise StoreBusy(str(self.directory), 0) from error
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_SH)


def _sync(path: Path) -> None:
    """Have a file, or a folder's entries, on disk; Windows has no way to ask for the latter."""
    if os.name != "posix" and path.is_dir():
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
