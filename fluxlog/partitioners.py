"""Which partition a record goes to.

With a key: the same key, the same partition, for as long as their number stays. `crc32_of_key` is what librdkafka's
"consistent" partitioner does (and fluxctl), `murmur2_of_key` what Kafka's Java client does: pick that of the programs
that write the same topic.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

Partitioner = Callable[[bytes, int], int]
"""(key, number of partitions) -> partition, 0..number-1."""


def crc32_of_key(key: bytes, partitions: int) -> int:
    """CRC-32 of the key, modulo."""
    return zlib.crc32(key) % partitions


def murmur2_of_key(key: bytes, partitions: int) -> int:
    """Murmur2 of the key without its sign, modulo."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


_M = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """32 bits, as org.apache.kafka.common.utils.Utils.murmur2 (there with a sign)."""
    length = len(data)
    whole = length & ~3
    h = _SEED ^ length
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if length > whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15
