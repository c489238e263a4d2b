"""What Krunch raises. Every error carries its facts as attributes and says what to do next.

    KrunchError
    ├── SettingsError            a setting that is unknown, of the wrong type or out of range
    ├── PluginError              a plugin that cannot be registered (or is not registered)
    ├── RequestRefused           raised by a plugin to stop a call; the caller gets it as it is
    ├── RestoreError             a message that names something which no message before it defines
    ├── TokenizerUnavailable     no way to count tokens for a model right now
    ├── MissingExtra             an optional dependency is not installed; names the extra
    ├── WrongDimension           a vector has another length than those it is to be compared with
    └── StoreError               stored data: writing, reading or checking it failed
        ├── StoreUnavailable     the directory cannot be used: missing, forbidden, read-only, foreign, replaced
        ├── StoreClosed          the store was closed before the call
        ├── StoreFull            no room left on the disk; nothing of the call was stored
        ├── StoreBusy            another process held the lock for too long; nothing of the call was stored
        ├── QuotaExceeded        a tenant has used up its bytes; nothing of the call was stored
        ├── NotStorable          a value that JSON cannot express
        ├── SessionExists        an import would mix two histories
        ├── FrameDamaged         one stored frame is damaged or missing; all others stay readable
        ├── RecordsLost          what is kept as a log has gaps, so what it adds up to is not certain
        ├── SessionsDamaged      what was done to many sessions was not done to all of them
        ├── DatabaseDamaged      the database file itself cannot be read
        └── SnapshotError        a snapshot (a file of state) could not be written, read or removed
            ├── SnapshotMissingError    there is no snapshot at that place
            ├── SnapshotDamagedError    the file is torn, altered, or no snapshot at all
            ├── SnapshotVersionError    written by a newer version, or no migration leads to the wanted one
            └── SnapshotValueError      a value that cannot be saved, or is not what the caller allows

Requests fail open: of these, only `RequestRefused` ever leaves `Krunch.prepare` (beside `TypeError` for arguments
that are not messages at all). Stored data fails loudly: a direct call to the store raises.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class KrunchError(Exception):
    """Base of every error that Krunch raises on purpose."""


class SettingsError(KrunchError):
    """A setting is unknown, of the wrong type, or out of range.

    Attributes:
        key: name of the setting, as the user wrote it.
        value: the value that was given.
        allowed: what would have been accepted, in words.
        source: where it came from: "arguments", a file's path, or an environment variable's name.
    """

    def __init__(self, key: str, value: object, allowed: str, source: str = "arguments") -> None:
        self.key, self.value, self.allowed, self.source = key, value, allowed, source
        super().__init__(f"setting {key!r} from {source} is {value!r}; allowed: {allowed}")


class PluginError(KrunchError):
    """A plugin cannot be registered: unknown hook, wrong signature, name taken, or nothing to hook.

    Attributes:
        plugin: the plugin's name.
        why: what is wrong with it and what would be right.
    """

    def __init__(self, plugin: str, why: str) -> None:
        self.plugin, self.why = plugin, why
        super().__init__(f"plugin {plugin!r}: {why}")


class RequestRefused(KrunchError):  # noqa: N818 - it is an order to stop, not a failure; the name is public
    """Raised by a plugin's hook to stop the call; `Krunch.prepare` lets it through to the caller.

    Attributes:
        reason: why the request must not be sent; shown to the caller, so it holds no message text.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class RestoreError(KrunchError):
    """A message refers to something that no message before it defines, so its text cannot be rebuilt.

    Attributes:
        index: position of the message in the list, from 0.
        mark: the mark that could not be resolved.
    """

    def __init__(self, index: int, mark: str) -> None:
        self.index, self.mark = index, mark
        super().__init__(
            f"message {index}: {mark!r} refers to nothing that stands before it; "
            "restore() needs the whole request, in order, exactly as it was sent"
        )


class TokenizerUnavailable(KrunchError):  # noqa: N818 - the reason code has the same name
    """The tokenizer of a model could not be loaded (yet), so nothing can be counted.

    Attributes:
        encoding: name of the tiktoken encoding.
        why: what was tried.
    """

    def __init__(self, encoding: str, why: str) -> None:
        self.encoding, self.why = encoding, why
        super().__init__(
            f"tokenizer {encoding!r} is not available: {why}. Set TIKTOKEN_CACHE_DIR to a folder that holds its BPE "
            "file, install litellm (its wheel carries the file), or allow tiktoken to download it"
        )


class MissingExtra(KrunchError):  # noqa: N818 - reads as what it is
    """An optional dependency is not installed.

    Attributes:
        extra: the extra that brings it.
        what: what needs it.
    """

    def __init__(self, extra: str, what: str) -> None:
        self.extra, self.what = extra, what
        super().__init__(f"{what} needs an optional dependency: pip install 'krunch-plugins[{extra}]'")


class WrongDimension(KrunchError):  # noqa: N818 - reads as what it is
    """Vectors have another length than those of the index, so they come from another model.

    Attributes:
        expected: length of the vectors in the index.
        found: length of those that were given.
        what: what was given.
    """

    def __init__(self, expected: int, found: int, what: str) -> None:
        self.expected, self.found, self.what = expected, found, what
        super().__init__(
            f"{what}: vectors have {found} dimensions, this index has {expected}; they come from another model. "
            "An index holds the vectors of one model: give another model another index"
        )


class StoreError(KrunchError):
    """Base of what the history store raises."""


class StoreUnavailable(StoreError):  # noqa: N818 - reads as what it is
    """The store's directory cannot be used. Nothing that was acknowledged is lost by it.

    Attributes:
        directory: the store's directory.
        why: what is wrong with it.
    """

    def __init__(self, directory: str, why: str) -> None:
        self.directory, self.why = directory, why
        super().__init__(f"the history store in {directory!r} cannot be used: {why}")


class StoreClosed(StoreError):  # noqa: N818 - reads as what it is
    """The store was closed before the call."""

    def __init__(self) -> None:
        super().__init__("this ConversationStore is closed; open a new one on the same directory")


class StoreFull(StoreError):  # noqa: N818 - reads as what it is
    """There is no room left on the disk. The call stored nothing, and everything before it is intact.

    Attributes:
        directory: the store's directory.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        super().__init__(
            f"no room left on the disk of {directory!r}: nothing of this call was stored. "
            "Free some space and call again"
        )


class StoreBusy(StoreError):  # noqa: N818 - reads as what it is
    """Another thread or process held the store for longer than we wait. The call stored nothing.

    Attributes:
        directory: the store's directory.
        seconds: how long we waited.
    """

    def __init__(self, directory: str, seconds: float) -> None:
        self.directory, self.seconds = directory, seconds
        super().__init__(
            f"the history store in {directory!r} was held by another process for {seconds:g} s: nothing of this call "
            "was stored. Call again, or close the other process"
        )


class QuotaExceeded(StoreError):  # noqa: N818 - reads as what it is
    """A tenant would take more bytes than its quota allows. The call stored nothing.

    Attributes:
        tenant: whose quota it is.
        size: bytes that the tenant's sessions would take on disk.
        limit: bytes that it may take.
    """

    def __init__(self, tenant: str | None, size: int, limit: int) -> None:
        self.tenant, self.size, self.limit = tenant, size, limit
        super().__init__(
            f"tenant {tenant!r} would take {size} bytes of {limit}: nothing of this call was stored. "
            "Call compact(), forget sessions, or raise `tenant_quota_bytes`"
        )


class NotStorable(StoreError):  # noqa: N818 - reads as what it is
    """A message or metadata holds something that JSON cannot express, so it could not come back equal.

    Attributes:
        path: where it stands, such as "messages[2].content[0]".
        kind: name of its type.
    """

    def __init__(self, path: str, kind: str) -> None:
        self.path, self.kind = path, kind
        super().__init__(
            f"{path} is of type {kind}, which cannot be stored losslessly; use dicts with string keys, lists, strings, "
            "numbers, booleans and None"
        )


class SessionExists(StoreError):  # noqa: N818 - reads as what it is
    """An import names a session that has turns already; the two histories are not mixed.

    Attributes:
        session: the session's id.
        turns: how many turns it has.
    """

    def __init__(self, session: str, turns: int) -> None:
        self.session, self.turns = session, turns
        super().__init__(
            f"session {session!r} has {turns} turns already: nothing was imported. Forget it first, or import under "
            "another name"
        )


class FrameDamaged(StoreError):  # noqa: N818 - reads as what it is
    """One stored frame does not hold what was written into it, or is missing. Other frames stay readable.

    Attributes:
        session: the session it belongs to, or None where that is not known.
        segment: the frame's key in the cold tier ("" if it was decoded outside of a store).
        codec: the codec's name ("" if the frame does not even say).
        why: what is wrong.
    """

    def __init__(self, session: str | None, segment: str, codec: str, why: str) -> None:
        self.session, self.segment, self.codec, self.why = session, segment, codec, why
        super().__init__(
            f"segment {segment!r} of session {session!r} (codec {codec or 'unknown'}) is damaged: {why}. "
            "Everything else stays readable; check(repair=True) moves the damaged frame into quarantine"
        )


class RecordsLost(StoreError):  # noqa: N818 - reads as what it is
    """Records of a log (of items, of checkpoints) are lost to damage, so what the log adds up to is not certain.

    Attributes:
        session: the log's session.
        lost: how many records are missing.
        remedy: what to do, in words.
    """

    def __init__(self, session: str, lost: int, remedy: str) -> None:
        self.session, self.lost, self.remedy = session, lost, remedy
        super().__init__(f"{lost} records of {session!r} are lost to damage, and with them what was changed. {remedy}")


class SessionsDamaged(StoreError):  # noqa: N818 - reads as what it is
    """What was to be done with many sessions was done with all that could be read; these could not.

    Attributes:
        sessions: their ids.
        what: what was not done, in words.
    """

    def __init__(self, sessions: Sequence[str], what: str) -> None:
        self.sessions, self.what = tuple(sessions), what
        named = ", ".join(map(repr, self.sessions))
        super().__init__(f"{len(self.sessions)} sessions cannot be read, {what}: {named}. Ask for each to see why")


class DatabaseDamaged(StoreError):  # noqa: N818 - reads as what it is
    """The database file itself cannot be read.

    Attributes:
        path: the file.
        why: what SQLite says.
    """

    def __init__(self, path: str, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(
            f"the database {path!r} is damaged: {why}. check(repair=True) salvages every intact frame and keeps the "
            "damaged file"
        )


class SnapshotError(StoreError):
    """A snapshot could not be written, read or removed. What was saved before is untouched.

    Attributes:
        path: the file.
        why: what went wrong and what to do about it.
    """

    def __init__(self, path: str | Path, why: str) -> None:
        self.path, self.why = Path(path), why
        super().__init__(f"snapshot {str(path)!r}: {why}")


class SnapshotMissingError(SnapshotError):
    """There is no snapshot at that place, and no backup of one either."""


class SnapshotDamagedError(SnapshotError):
    """The file is not, byte for byte, what was written: torn, altered, or no snapshot at all."""


class SnapshotVersionError(SnapshotError):
    """The snapshot has a version that cannot be turned into the one wanted.

    Attributes:
        found: the version in the file.
        supported: the version that this program wants.
    """

    def __init__(self, path: str | Path, found: int, supported: int, why: str) -> None:
        self.found, self.supported = found, supported
        super().__init__(path, f"has version {found}, this program wants {supported}: {why}")


class SnapshotValueError(SnapshotError):
    """A value that cannot be saved, or that is not what the caller allows.

    Attributes:
        where: the value's place in the state, as it would be written in Python: `["grid"][3]`.
    """

    def __init__(self, path: str | Path, where: str, why: str) -> None:
        self.where = where
        super().__init__(path, f"state{where} {why}")
