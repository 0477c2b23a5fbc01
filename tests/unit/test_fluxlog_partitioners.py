"""Keys go where other clients' keys go."""

from __future__ import annotations

import zlib

import pytest

from fluxlog.partitioners import crc32_of_key, murmur2, murmur2_of_key


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_that_of_kafkas_java_client(key: bytes, signed: int) -> None:
    """The values of its own unit test (org.apache.kafka.common.utils.UtilsTest.testMurmur2)."""
    assert murmur2(key) == signed & 0xFFFFFFFF
    assert murmur2_of_key(key, 12) == (signed & 0x7FFFFFFF) % 12


def test_crc32_is_that_of_librdkafkas_consistent_partitioner() -> None:
    assert crc32_of_key(b"123456789", 1 << 32) == 0xCBF43926  # the check value of CRC-32
    assert crc32_of_key(b"visitor-7", 12) == zlib.crc32(b"visitor-7") % 12
