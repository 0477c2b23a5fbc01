"""A node's data directory: whose it is, and who may use it.

    lock                     held (flock) by the one process that uses the directory
    meta.json                format version, node id, directory id, cluster id, founding
    votes                    terms and votes of all groups (storage/votes.py)
    partitions/<group>/      one directory per group (storage/log.py)
    copies/<group>/          a copy that is to take the place of a log (storage/copies.py)
    quarantine/<group>.<n>/  what was set aside; nothing reads it, and it goes after a while (storage/quarantine.py)

`meta.json` is made last: a directory without it was never used. It is replaced as a whole (temporary file, sync,
rename, sync of the directory), so a power cut leaves the old or the new one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fluxd.core.types import DIRECTORY_ID_BYTES, GroupId, NodeId
from fluxd.storage.copies import COPIES, discard, finish_replacing
from fluxd.storage.errors import DirectoryError, being_mended
from fluxd.storage.filesystem import FileSystem
from fluxd.storage.json_file import replace_json
from fluxd.storage.lock import DirectoryLock
from fluxd.storage.quarantine import QUARANTINE, free_path
from fluxd.storage.votes import VoteFile

FORMAT_VERSION = 1
META_NAME = "meta.json"
VOTES_NAME = "votes"
PARTITIONS = "partitions"


@dataclass(frozen=True, slots=True)
class FoundingMember:
    """One seed node, as the cluster was founded."""

    node_id: NodeId
    directory_id: str
    """32 hex digits."""
    address: str


@dataclass(frozen=True, slots=True)
class Meta:
    """Content of meta.json."""

    node_id: NodeId
    directory_id: str
    """32 hex digits, random: another disk is another directory."""
    cluster_id: str = ""
    """Empty until the node has joined or founded a cluster."""
    founding: tuple[FoundingMember, ...] = ()
    metadata_bound: bool = False
    """The vote of this node's replica of the metadata was bound to this directory after the founding."""
    format_version: int = FORMAT_VERSION


class DataDirectory:
    """An opened directory. Its calls block."""

    def __init__(self, fs: FileSystem, meta: Meta, lock: DirectoryLock | None, *, fresh: bool) -> None:
        self.fs = fs
        self.fresh = fresh
        """It was made by this `open_directory`."""
        self._meta = meta
        self._lock = lock
        self._damage = self._unwritten = ""
        self._lock_of_meta = threading.Lock()

    @property
    def meta(self) -> Meta:
        """As it is on disk."""
        return self._meta

    @property
    def why(self) -> str:
        """What is wrong with meta.json, for people, until it is written anew; empty: nothing is known."""
        return "; ".join(filter(None, (self._damage, self._unwritten)))

    def set_cluster(self, cluster_id: str, founding: tuple[FoundingMember, ...]) -> None:
        """Bind the directory to a cluster, durably.

        Raises:
            DirectoryError: it belongs to another one; nothing was written.
        """
        if self._meta.cluster_id not in ("", cluster_id):
            raise DirectoryError(f"this data directory belongs to cluster {self._meta.cluster_id}, not {cluster_id}")
        self._change(replace(self._meta, cluster_id=cluster_id, founding=founding))

    def set_metadata_bound(self) -> None:
        """Remember that the cluster has bound the metadata replica's vote to this directory, durably."""
        if not self._meta.metadata_bound:
            self._change(replace(self._meta, metadata_bound=True))

    def renew(self, random_bytes: Callable[[int], bytes]) -> None:
        """The votes are lost: from now on this is another directory, without any, to which no replica is bound.

        The new id is durable before there are new votes: power lost in between, this is done again.
        """
        self._change(replace(self._meta, directory_id=random_bytes(DIRECTORY_ID_BYTES).hex(), metadata_bound=False))
        if self.fs.exists(VOTES_NAME):
            self.fs.rename(VOTES_NAME, free_path(self.fs, VOTES_NAME))
            self.fs.sync_directory(QUARANTINE)
        VoteFile.create(self.fs, VOTES_NAME).close()

    def _change(self, meta: Meta) -> None:
        with self._lock_of_meta:
            self._write(meta)
            self._meta = meta

    def _write(self, meta: Meta) -> None:
        try:
            _write_meta(self.fs, meta)
        except OSError as error:
            self._unwritten = f"its {META_NAME} cannot be written: {error}"
            raise
        self._damage = self._unwritten = ""

    def begin_check(self) -> Callable[[], str] | None:
        """For another thread: read meta.json again; "", or path, position and what is wrong. Raises OSError."""
        return self._fault

    def _fault(self) -> str:
        with self._lock_of_meta:
            try:
                found = _read_meta(self.fs)
            except DirectoryError as error:
                return f"{META_NAME}: position 0: {error}"
            return "" if found == self._meta else f"{META_NAME}: position 0: not what was written"

    def mend(self, fault: str) -> Sequence[Callable[[], None]]:
        """Blocking steps that write meta.json anew: the process knows what it says."""
        self._damage = being_mended(fault)
        return [self._write_anew]

    def _write_anew(self) -> None:
        with self._lock_of_meta:
            self._write(self._meta)

    def partitions(self) -> list[str]:
        """Names of the directories below partitions/ and copies/: power lost while a copy takes a log's place leaves
        the copy alone."""
        return sorted({*self.fs.list(PARTITIONS), *self.fs.list(COPIES)})

    def quarantine(self, name: str) -> str:
        """Move partitions/<name> aside, durably; returns its new path, or "" where there was only a part of a copy.

        What had been decided to take its place (`copies.finish_replacing`) does so before; any other copy is removed.
        The rename is atomic, so power lost in between leaves it under one of the two names.
        """
        path, group = "", GroupId.from_directory_name(name)
        finish_replacing(self.fs, group)
        if self.fs.exists(f"{PARTITIONS}/{name}"):
            path = free_path(self.fs, name)
            self.fs.rename(f"{PARTITIONS}/{name}", path)
            self.fs.sync_directory(QUARANTINE)
            self.fs.sync_directory(PARTITIONS)
        discard(self.fs, group)
        return path

    def close(self) -> None:
        """Let another process use the directory: nothing of this one may change its files any more. Harmless when
        closed.
        """
        if self._lock is not None:
            self._lock.release()


def open_directory(
    fs: FileSystem, root: Path | None, node_id: NodeId, random_bytes: Callable[[int], bytes]
) -> DataDirectory:
    """Lock a data directory and read whose it is; an empty one is made this node's. Blocks.

    Args:
        fs: over the root.
        root: where to lock; None: nobody else can be there (simulation).
        random_bytes: source of the directory id.

    Raises:
        DirectoryError: in use by another process, of another node or format version, or damaged; nothing was written.
    """
    lock = DirectoryLock(root) if root is not None else None
    try:
        meta = _read_meta(fs)
        if meta is None:
            return DataDirectory(fs, _initialise(fs, node_id, random_bytes), lock, fresh=True)
        if meta.node_id != node_id:
            raise DirectoryError(f"this data directory belongs to node {meta.node_id}, not {node_id}")
        for name in (PARTITIONS, QUARANTINE):
            fs.make_directory(name)
        fs.sync_directory("")
        return DataDirectory(fs, meta, lock, fresh=False)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _initialise(fs: FileSystem, node_id: NodeId, random_bytes: Callable[[int], bytes]) -> Meta:
    if fs.list(PARTITIONS):
        raise DirectoryError(
            f"this data directory holds partitions but no {META_NAME}: put the file back, or use an empty directory"
        )
    for name in (PARTITIONS, QUARANTINE):
        fs.make_directory(name)
    VoteFile.create(fs, VOTES_NAME).close()
    meta = Meta(node_id, random_bytes(DIRECTORY_ID_BYTES).hex())
    _write_meta(fs, meta)
    return meta


def _write_meta(fs: FileSystem, meta: Meta) -> None:
    replace_json(fs, META_NAME, asdict(meta))


def _read_meta(fs: FileSystem) -> Meta | None:
    try:
        file = fs.open(META_NAME)
    except FileNotFoundError:
        return None
    with closing(file):
        file.forget_all()
        data = file.read(0, file.size())
    try:
        content = json.loads(data)
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise DirectoryError(
                f"this data directory has format version {version}; this fluxd reads {FORMAT_VERSION}: "
                "use the fluxd that wrote it"
            )
        return Meta(
            NodeId(int(content["node_id"])),
            _directory_id(content["directory_id"]),
            str(content["cluster_id"]),
            tuple(
                FoundingMember(NodeId(int(m["node_id"])), _directory_id(m["directory_id"]), str(m["address"]))
                for m in content["founding"]
            ),
            bool(content.get("metadata_bound", False)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DirectoryError(f"{META_NAME} is damaged: {error!r}") from error


def _directory_id(text: object) -> str:
    if not isinstance(text, str) or len(bytes.fromhex(text)) != DIRECTORY_ID_BYTES:
        raise ValueError(f"{text!r} is not a directory id")
    return text
