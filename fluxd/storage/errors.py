"""What opening stored state can find, beside OSError.

None of these is an error of a caller of the API. Each of them keeps a replica (or, for votes, every replica of the
node) from taking part: it neither votes nor acknowledges until it has been admitted again.
"""

from __future__ import annotations

import errno

from fluxd.core.errors import CorruptDataError

_ERRNOS_OF_DAMAGE = (errno.EIO, errno.ENOENT)


def is_damage(error: BaseException) -> bool:
    """Whether a failed read of what is durable says that the disk has lost it; else it may pass."""
    return isinstance(error, CorruptDataError) or (isinstance(error, OSError) and error.errno in _ERRNOS_OF_DAMAGE)


def being_mended(fault: str) -> str:
    """For people, of a file of which the process knows what it says.

    Args:
        fault: path, position and what is wrong.
    """
    return f"damaged, and being written anew: {fault}"


class LogMissing(Exception):
    """There is no log: no directory, no file in it, or a creation that power cut off before the birth entry was
    durable.

    Whether a log may be created is the caller's to judge: a log that is missing where a vote says that it was there
    is a lost disk.
    """


class LogCorrupt(Exception):
    """Bytes that were durable have changed or gone. Nothing was written; the message names file, position and index."""


class VotesMissing(Exception):
    """The file of terms and votes is not there. On a data directory that was in use the node's votes are lost."""


class VotesCorrupt(Exception):
    """A record of the vote file changed after it was durable. Nothing was written."""


class DirectoryError(Exception):
    """The data directory cannot be used by this process; the message says why and what to do."""
