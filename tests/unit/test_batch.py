"""What is wrong with a batch is said clearly; what is odd but legal passes; bombs are refused in little memory."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import lz4.frame
import pytest
import zstandard

import fluxlog.batch
from fluxd.core import limits
from fluxd.core.batch import UndecodableBatchError, batch_from_records, check_batch, producer_of, records_from_frames
from fluxd.core.entry import EntryKind, build_frame
from fluxd.core.errors import CorruptDataError, FluxError, Reason
from fluxlog.batch import BatchTooLargeError, Codec, CorruptBatchError, Record, crc32c_of, decode_batch, encode_batch
from fluxlog.codec import CodecError, compress, decompress
from fluxlog.entry import CorruptResponseError, batches_of, parse_response, records_of
from fluxlog.v1 import record_pb2

PRODUCER = bytes(range(16))


def message(**changes: object) -> record_pb2.RecordBatch:
    """Two records, "ab" with key "k" and one header, and a tombstone without key; changed."""
    batch = record_pb2.RecordBatch(
        record_count=2,
        producer_id=PRODUCER,
        base_sequence=3,
        value_lengths=[2, 0],
        null_values=[1],
        key_lengths=[1, 0],
        null_keys=[1],
        header_counts=[1, 0],
        header_key_lengths=[1],
        header_value_lengths=[0],
        null_header_values=[0],
        columns=b"abkh",
    )
    for name, value in changes.items():
        if isinstance(value, list):
            batch.ClearField(name)  # type: ignore[arg-type]
            getattr(batch, name).extend(value)
        else:
            setattr(batch, name, value)
    return batch


def refusal(data: bytes) -> FluxError:
    with pytest.raises(FluxError) as caught:
        check_batch(data)
    return caught.value


def frame_of(*batches: bytes, record_count: int, base_offset: int = 0) -> bytes:
    return build_frame(
        kind=EntryKind.RECORDS, base_offset=base_offset, raft_index=2, leader_epoch=3, append_time_ms=4,
        record_count=record_count, previous_checksum=5, batches=batches,
    )  # fmt: skip


def test_both_sides_have_the_same_bounds() -> None:
    """The library knows no server code, so its bounds are compared here."""
    assert fluxlog.batch.BATCH_BYTES_MAX == limits.BATCH_BYTES_MAX
    assert fluxlog.batch.BATCH_RECORDS_MAX == limits.BATCH_RECORDS_MAX
    assert fluxlog.batch.BATCH_UNCOMPRESSED_BYTES_MAX == limits.BATCH_UNCOMPRESSED_BYTES_MAX


def test_the_unchanged_message_is_valid() -> None:
    """So that what the next test changes is what makes it invalid."""
    data = message().SerializeToString()
    assert check_batch(data) == producer_of(data) == (2, PRODUCER, 3)
    assert check_batch(memoryview(data)) == (2, PRODUCER, 3)
    assert list(decode_batch(data)) == [Record(b"ab", b"k", (("h", None),)), Record(None)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record_count": 0}, "record_count is 0"),
        ({"record_count": 1}, "must have 1"),
        ({"codec": 7}, "unknown codec 7"),
        ({"producer_id": bytes(15)}, "15 bytes"),
        ({"producer_id": b""}, "base_sequence without producer_id"),
        ({"base_sequence": 2**64 - 2}, "2^64"),
        ({"offset_deltas": [0, 1]}, "offset_deltas must be empty"),
        ({"timestamp_deltas_ms": [1]}, "timestamp_deltas_ms has 1"),
        ({"value_lengths": [2]}, "value_lengths has 1"),
        ({"value_lengths": [3, 0]}, "add up to 5"),
        ({"value_lengths": [1, 1]}, "a null value has a length"),
        ({"null_values": [2]}, "null value"),
        ({"null_values": [1, 1]}, "not strictly ascending"),
        ({"key_lengths": [1, 0, 0]}, "key_lengths has 3"),
        ({"key_lengths": []}, "null key"),
        ({"null_keys": [0]}, "a null key has a length"),
        ({"header_counts": [2, 0]}, "header_key_lengths has 1 numbers, must have 2"),
        ({"header_counts": []}, "header_key_lengths has 1 numbers, must have 0"),
        ({"header_value_lengths": []}, "header_value_lengths has 0"),
        ({"null_header_values": [0, 1]}, "null header value"),
        ({"columns": b"abk\xff"}, "not UTF-8"),
        ({"columns": b""}, "the columns have 0"),
    ],
)
def test_counts_and_lengths_that_disagree(changes: dict[str, object], words: str) -> None:
    """Each is CORRUPT_BATCH with the numbers in question; the client refuses the same, but for what appends need."""
    data = message(**changes).SerializeToString()
    error = refusal(data)
    assert error.reason is Reason.CORRUPT_BATCH
    assert words in error.message
    if not {"producer_id", "base_sequence", "offset_deltas"} & set(changes):
        with pytest.raises(CorruptBatchError):
            decode_batch(data)


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (b"\x08\x02", "field 1 occurs twice"),
        (b"\x82\x01\x00", "field 16 occurs twice"),
        (b"\x8a\x01\x00", "unknown field"),
        (b"\x31" + bytes(8), "unknown field"),
        (b"\x32\x05\x00", "cut off"),
        (b"\x28\xff", "cut off"),
        (b"\x28" + b"\xff" * 11, "cut off"),
        (b"\x28", "cut off"),
    ],
)
def test_a_shape_that_generated_code_does_not_give(suffix: bytes, words: str) -> None:
    """Repeated and unknown fields are refused: they may be columns that were not checked."""
    error = refusal(message().SerializeToString() + suffix)
    assert error.reason is Reason.CORRUPT_BATCH
    assert words in error.message


@pytest.mark.parametrize("depth", [1, 98, 99, 100])
def test_nested_groups_cannot_make_an_entry_unreadable(depth: int) -> None:
    """A parser allows 100 levels; readers see a batch two levels deeper than the leader does."""
    data = message().SerializeToString() + b"\x9b\x01" * depth + b"\x9c\x01" * depth
    assert refusal(data).reason is Reason.CORRUPT_BATCH


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x08", bytes(100), b"\x0a\x35" + bytes(53), b"\x12" * 60])
def test_bytes_that_are_no_batch(data: bytes) -> None:
    """Clear refusals, also of nothing at all."""
    assert refusal(data).reason is Reason.CORRUPT_BATCH
    with pytest.raises(CorruptBatchError):
        decode_batch(data)


def test_batches_that_are_too_large() -> None:
    """Bytes, records and declared bytes have a bound each, with their own reason."""
    assert refusal(bytes(limits.BATCH_BYTES_MAX + 1)).reason is Reason.BATCH_TOO_LARGE
    many = record_pb2.RecordBatch(record_count=65_537, value_lengths=[0] * 65_537)
    assert refusal(many.SerializeToString()).reason is Reason.BATCH_TOO_LARGE
    declared = message(value_lengths=[limits.BATCH_UNCOMPRESSED_BYTES_MAX + 1, 0], codec=record_pb2.CODEC_ZSTD)
    assert refusal(declared.SerializeToString()).reason is Reason.BATCH_TOO_LARGE
    with pytest.raises(CorruptBatchError):
        decode_batch(declared)


def test_the_largest_batches_pass() -> None:
    """The bounds are inclusive."""
    assert check_batch(encode_batch([b""] * 65_536)).record_count == 65_536
    overhead = len(encode_batch([bytes(1_000_000)])) - 1_000_000
    assert check_batch(encode_batch([bytes(limits.BATCH_BYTES_MAX - overhead)])).record_count == 1


def test_the_encoder_refuses_what_the_server_would() -> None:
    """Before anything is sent."""
    for too_large in ([b""] * 65_537, [bytes(limits.BATCH_BYTES_MAX)]):
        with pytest.raises(BatchTooLargeError):
            encode_batch(too_large)
    with pytest.raises(BatchTooLargeError):
        encode_batch([bytes(2**20)] * 17, codec=Codec.ZSTD)
    with pytest.raises(ValueError, match="at least one"):
        encode_batch([])
    with pytest.raises(ValueError, match="1 keys for 2 values"):
        encode_batch([b"", b""], keys=[b""])
    with pytest.raises(ValueError, match="1 timestamps for 2 values"):
        encode_batch([b"", b""], timestamps_ms=[1])
    with pytest.raises(ValueError, match="rows of headers"):
        encode_batch([b"", b""], headers=[()])
    with pytest.raises(TypeError):
        encode_batch(["text"])  # type: ignore[list-item]


def test_null_keys_and_absent_headers_take_no_room() -> None:
    """A column of nulls only is left out."""
    plain = encode_batch([b"a"], timestamps_ms=1)
    assert encode_batch([b"a"], keys=[None], headers=[()], timestamps_ms=[1]) == plain
    assert crc32c_of(plain) == crc32c_of(bytes(plain))


def test_a_reader_honours_offset_deltas() -> None:
    """As compaction will leave them: gaps within the batch, and the next one behind the last."""
    batch = message(offset_deltas=[3, 7]).SerializeToString()
    frame = frame_of(batch, batch, record_count=4, base_offset=100)
    assert [record.offset for record in records_from_frames(frame, 104)] == [107, 111, 115]
    entries = parse_response(frame).entries
    assert [record.offset for record in records_of(entries, 104)] == [107, 111, 115]
    assert [(batch.base_offset, batch.next_offset) for batch in batches_of(entries, 108)] == [(108, 116)]
    for odd in ([3], [3, 3], [4, 3]):
        with pytest.raises(CorruptBatchError):
            decode_batch(message(offset_deltas=odd))
        with pytest.raises(UndecodableBatchError):
            records_from_frames(frame_of(message(offset_deltas=odd).SerializeToString(), record_count=2), 0)


def test_records_behind_an_entry_that_moves_the_log_start() -> None:
    """Raft's own entries lie between: what they hold is no batch."""
    own = build_frame(
        kind=EntryKind.TRIM, base_offset=7, raft_index=1, leader_epoch=1, append_time_ms=1, record_count=0,
        previous_checksum=0, log_start_offset=5,
    )  # fmt: skip
    records = records_from_frames(own + frame_of(encode_batch([b"v"]), record_count=1), 0)
    assert [record.value for record in records] == [b"v"]


def test_frames_are_verified_before_records_are_taken_from_them() -> None:
    """A flipped bit on disk is no record."""
    frame = bytearray(frame_of(encode_batch([b"abc"]), record_count=1))
    frame[-1] ^= 1
    with pytest.raises(CorruptDataError):
        records_from_frames(bytes(frame), 0)
    with pytest.raises(CorruptResponseError):
        parse_response(bytes(frame))
    assert len(parse_response(bytes(frame), verify=False).entries) == 1


@pytest.mark.parametrize(
    ("records", "producer", "reason"),
    [
        ([], (b"", 0), Reason.INVALID_ARGUMENT),
        ([record_pb2.Record()], (bytes(3), 0), Reason.INVALID_ARGUMENT),
        ([record_pb2.Record()], (b"", 1), Reason.INVALID_ARGUMENT),
        ([record_pb2.Record()], (PRODUCER, 2**64 - 1), Reason.INVALID_ARGUMENT),
        ([record_pb2.Record()] * 65_537, (b"", 0), Reason.BATCH_TOO_LARGE),
        ([record_pb2.Record(value=bytes(2**20))], (b"", 0), Reason.BATCH_TOO_LARGE),
    ],
)
def test_plain_records_out_of_bounds(
    records: list[record_pb2.Record], producer: tuple[bytes, int], reason: Reason
) -> None:
    """The same bounds as for batches."""
    with pytest.raises(FluxError) as caught:
        batch_from_records(records, *producer, now_ms=1)
    assert caught.value.reason is reason


def test_levels_of_codecs() -> None:
    """None is the default; a level that the codec does not have is a ValueError."""
    data = b"some words " * 100
    for codec, level in ((Codec.ZSTD, 1), (Codec.ZSTD, 22), (Codec.LZ4, 9), (Codec.GZIP, 0), (Codec.GZIP, 9)):
        assert decompress(codec, compress(codec, data, level), len(data)) == data
    for codec in (Codec.ZSTD, Codec.GZIP):
        with pytest.raises(ValueError, match=r"level|option"):
            compress(codec, data, 99)


# ---- bombs

BOMB_BYTES = 64 * 1024 * 1024


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """Bytes allocated at most since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def zstd_stream(**parameters: int) -> bytes:
    """A frame that does not say how much it holds."""
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(write_content_size=0, **parameters)
    ).compressobj()
    return compressor.compress(bytes(BOMB_BYTES)) + compressor.flush()


def gzip(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush()


BOMBS: dict[str, tuple[Codec, Callable[[], bytes]]] = {
    "zstd": (Codec.ZSTD, lambda: zstandard.compress(bytes(BOMB_BYTES))),
    "zstd that lies": (Codec.ZSTD, lambda: b"\x28\xb5\x2f\xfd\xe0" + (2**50).to_bytes(8, "little") + b"\x01\x00\x00"),
    "zstd of unknown size": (Codec.ZSTD, zstd_stream),
    "lz4": (Codec.LZ4, lambda: lz4.frame.compress(bytes(BOMB_BYTES))),
    "lz4 of unknown size": (Codec.LZ4, lambda: lz4.frame.compress(bytes(BOMB_BYTES), store_size=False)),
    "gzip": (Codec.GZIP, lambda: gzip(bytes(BOMB_BYTES))),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("declared", [0, 1, 100_000])
def test_bombs_are_refused_in_little_memory(name: str, declared: int, peak: Callable[[], int]) -> None:
    """Whatever a frame says of itself, and whatever it holds, both readers allocate what was declared."""
    codec, make = BOMBS[name]
    columns = make()
    batch = record_pb2.RecordBatch(record_count=1, codec=codec.value, value_lengths=[declared], columns=columns)
    frame = frame_of(batch.SerializeToString(), record_count=1)
    tracemalloc.reset_peak()
    before = peak()
    with pytest.raises(CorruptBatchError):
        decode_batch(batch)
    with pytest.raises(UndecodableBatchError) as caught:
        records_from_frames(frame, 0)
    assert caught.value.next_offset == 1
    assert peak() - before < 3 * declared + 8 * len(columns) + 500_000


@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.LZ4, Codec.GZIP])
@pytest.mark.parametrize("change", ["cut", "extended", "doubled", "empty", "shorter", "longer"])
def test_not_exactly_one_whole_frame_of_the_declared_size(codec: Codec, change: str) -> None:
    """One frame, nothing behind it, no byte more or less than the lengths say."""
    data = b"some words " * 100
    good = compress(codec, data)
    bad = {"cut": good[:-1], "extended": good + b"x", "doubled": good + good, "empty": b""}.get(change, good)
    declared = len(data) + {"shorter": -1, "longer": 1}.get(change, 0)
    with pytest.raises(CodecError):
        decompress(codec, bad, declared)
    assert decompress(codec, good, len(data)) == data
    batch = record_pb2.RecordBatch(record_count=1, codec=codec.value, value_lengths=[declared], columns=bad)
    with pytest.raises(UndecodableBatchError):
        records_from_frames(frame_of(batch.SerializeToString(), record_count=1), 0)


def test_a_zstd_window_over_the_bound_is_refused() -> None:
    """A frame can ask its reader for 2 GiB of window with a few bytes."""
    columns = zstd_stream(window_log=27)
    batch = record_pb2.RecordBatch(record_count=1, codec=record_pb2.CODEC_ZSTD, value_lengths=[2**24], columns=columns)
    with pytest.raises(CorruptBatchError, match="memory"):
        decode_batch(batch)
    with pytest.raises(UndecodableBatchError, match="memory"):
        records_from_frames(frame_of(batch.SerializeToString(), record_count=1), 0)
