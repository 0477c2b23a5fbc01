"""Every bound in one place, and how they relate (asserted at import).

Sizes are bytes, times seconds unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024

# ---- records and batches
BATCH_RECORDS_MAX: Final = 65_536
BATCH_BYTES_MAX: Final = 1 * MIB
"""Encoded RecordBatch, as it is on the wire."""
BATCH_UNCOMPRESSED_BYTES_MAX: Final = 16 * MIB
"""Sum of all lengths of a batch: what decompression may yield at most."""
TOPIC_NAME_CHARS_MAX: Final = 249

# ---- entries
ENTRY_BYTES_TARGET: Final = 1 * MIB
"""What waits is coalesced into one entry up to this."""
ENTRY_FRAME_BYTES_MAX: Final = ENTRY_BYTES_TARGET + BATCH_BYTES_MAX + 4 * KIB
"""A whole frame. Larger lengths on disk or on the wire are corruption."""

# ---- gRPC
GRPC_MESSAGE_BYTES_MAX: Final = 4 * MIB
"""gRPC's default receive limit, which clients in other languages have."""
FETCH_BYTES_DEFAULT: Final = 1 * MIB
FETCH_BYTES_MAX: Final = 3 * MIB
PLAIN_RECORD_BYTES_MAX: Final = GRPC_MESSAGE_BYTES_MAX - 4 * KIB
"""A record, encoded, that is delivered as a plain one: a response has room for one. Compressed batches may hold larger
ones."""
FETCH_WAIT_MS_MAX: Final = 30_000
PRODUCE_TIMEOUT_MS_DEFAULT: Final = 30_000
PRODUCE_TIMEOUT_MS_MAX: Final = 60_000
LIST_OFFSETS_QUERIES_MAX: Final = 10_000
DESCRIBE_TOPICS_MAX: Final = 10_000

# ---- storage
SEGMENT_BYTES_MIN: Final = 64 * KIB
SEGMENT_BYTES_DEFAULT: Final = 64 * MIB
SEGMENT_BYTES_MAX: Final = 1024 * MIB
SEGMENT_MS_MIN: Final = 1_000
SEGMENT_MS_DEFAULT: Final = 7 * 24 * 3600 * 1000
RETENTION_MS_DEFAULT: Final = 7 * 24 * 3600 * 1000
RETENTION_MAX: Final = (1 << 63) - 1
"""Of retention.ms and retention.bytes."""
SNAPSHOT_ENTRIES: Final = 20_000
"""Of a replica's state, besides one for each segment's worth of bytes: what is behind the last one is replayed when the
replica is opened, and small entries take as long as large ones."""
RETENTION_CHECK_INTERVAL: Final = 5.0
"""A leader looks at its segments this often."""
INDEX_INTERVAL_BYTES: Final = 32 * KIB
"""One sparse index entry per this many bytes of segment."""
DISK_RESERVE_BYTES: Final = 64 * MIB
"""With less free space than this, records are refused before they reach the log: what is left is for votes, trims and
deletions."""
DISK_CHECK_INTERVAL: Final = 1.0
DISK_FULL_RETRY_MS: Final = 1_000
DISK_RETRY_MIN: Final = 0.1
DISK_RETRY_MAX: Final = 10.0
"""After an error of the disk: seconds until the files are opened, or written, again; doubled each time."""
SCRUB_PIECE_BYTES: Final = 256 * KIB
"""Of a closed segment, read again at once."""
SCRUB_REST_FACTOR: Final = 19
"""After a piece the scrub rests so many times as long as that took."""
CHECK_BYTES_MAX: Final = 32 * MIB
"""Read and verified by one CheckReplica."""
CHECK_INDEXES_MAX: Final = 1_000
"""Checksums of one CheckReplica."""
SCRUB_INTERVAL_DEFAULT: Final = 24 * 3600.0
SCRUB_BYTES_PER_SECOND_DEFAULT: Final = 8 * MIB
QUARANTINE_RETENTION_DEFAULT: Final = 7 * 24 * 3600.0
QUARANTINE_CHECK_INTERVAL: Final = 10.0
"""Seconds; and so long a full disk may wait for what was set aside to go."""
TAIL_CACHE_BYTES: Final = 4 * MIB
"""Frames at the end of a log that stay in memory: what followers and waiting readers ask for."""
TAIL_CACHES_BYTES: Final = 256 * MIB
"""Of all logs of a node together."""

# ---- producers
PRODUCER_WINDOW_BATCHES: Final = 32
"""Remembered batches per producer and partition."""
PRODUCER_IN_FLIGHT_MAX: Final = 16
"""What our client has in flight per partition, and what a client may have for exact duplicates."""
PRODUCERS_PER_PARTITION_MAX: Final = 4_096
PRODUCER_EXPIRY_MS: Final = 7 * 24 * 3600 * 1000

# ---- back-pressure
PARTITION_QUEUE_BYTES_MAX: Final = 8 * MIB
"""Batches that wait behind the entry in flight."""
NODE_QUEUE_BYTES_MAX: Final = 128 * MIB
CONNECTION_QUEUE_BYTES_MAX: Final = 16 * MIB
STREAM_IN_FLIGHT_MAX: Final = 1_024
"""Requests of one ProduceStream that wait for their answer."""
REQUEST_OVERHEAD_BYTES: Final = 4 * KIB
"""What a waiting request costs beside its bytes, rounded up: so many small ones are bounded, too."""
FETCH_BUFFER_BYTES_MAX: Final = 256 * MIB
"""Fetch responses of a node that clients have not taken yet."""
OVERLOADED_RETRY_MS: Final = 100
WAITING_READS_MAX: Final = 10_000
PEER_BULK_BYTES_MAX: Final = 32 * MIB
"""Queued to one peer over all groups."""
REPLICATION_WINDOW_BYTES: Final = 4 * MIB
"""Sent to one follower of one group and not acknowledged."""

# ---- Raft
ELECTION_TIMEOUT_MIN: Final = 1.0
ELECTION_TIMEOUT_MAX: Final = 2.0
ELECTION_TIMEOUT_SLOW: Final = 5.0
"""The least election timeout where answers take seconds; at most twice as long."""
HEARTBEAT_INTERVAL: Final = 0.3
NODE_ID_PATIENCE: Final = 6.0
"""So long a starting node asks again when its number is said to be taken: its former process may have died without a
word, with another directory, and is believed in until pings to it have not been answered (4 s)."""
IN_SYNC_TIMEOUT: Final = 1.5
"""A replica is in sync while its acknowledged log end was the leader's within this time."""
NO_QUORUM_ANSWER: Final = 0.2
"""Without a quorum the refusal is given within this time."""
COPY_CHUNK_BYTES: Final = 1 * MIB
"""Of a log, asked for at once by a replica that copies it; one entry may be larger."""
COPY_CHUNK_BYTES_MAX: Final = 4 * MIB
"""The same where that is not enough to gain on those who write."""
COPY_BYTES_PER_SECOND: Final = 64 * MIB
"""Of all replicas that a node copies, together; doubled each time that they did not get nearer to their leaders for
COPY_PATIENCE seconds."""
COPY_BYTES_PER_SECOND_MAX: Final = 1024 * MIB
COPY_PATIENCE: Final = 10.0
COPY_RETRY: Final = 1.0
COPY_RETRY_MAX: Final = 10.0
"""A request for a piece that was not answered is repeated after so many seconds: twice what the last piece took, in
these bounds."""
COPY_ENTRIES_MAX: Final = 10_000
"""In one piece: they are checked and written in one turn of the loop."""
COPY_VOTERS_MIN: Final = 3
"""With fewer replicas no majority without the lost one can say what was committed."""
VOTERS_MAX: Final = 5
GENERATION_TERM_BITS: Final = 32
CAMPAIGNS_MAX: Final = 32
"""Groups of a node that campaign at the same time."""
GROUPS_STEPPED_MAX: Final = 64
"""In one turn of the loop: between turns what has arrived is read."""

# ---- cluster
PARTITIONS_PER_TOPIC_MAX: Final = 10_000
REPLICATION_FACTOR_DEFAULT: Final = 3
STATUS_INTERVAL: Final = 0.5
"""NodeStatus is sent this often, and at once when a leader changed."""
NODE_DOWN_AFTER: Final = 2.0
LOG_TRIM_INTERVAL: Final = 10.0
"""Who leads the metadata's or a groups' log sees this often whether it is long."""
METADATA_COMMANDS_REMEMBERED: Final = 1_024
"""Ids of the last metadata commands, by which a repeated one is recognised."""
METADATA_DELETIONS_REMEMBERED: Final = 4_096
"""Ids of the last topics deleted, in the state: a node that missed more sets the files of older ones aside."""
METADATA_TRIM_RECORDS: Final = 2_000
METADATA_TRIM_BYTES: Final = 4 * MIB
"""So many commands, or bytes of them, behind its start the metadata's state is written into their log, which is trimmed
to there."""
METADATA_SEGMENT_BYTES: Final = 1 * MIB
METADATA_READ_BYTES: Final = 64 * KIB
"""Of the metadata log applied in one step of the loop."""
CONTROLLER_QUEUE_MAX: Final = 256
"""Changes of the metadata that wait for the one before; beyond it the answer is OVERLOADED."""
TOPIC_WAIT_MS_MAX: Final = 30_000
LEADER_WAIT_MS_MAX: Final = 5_000
"""Of AwaitLeaders."""
AWAITED_LEADERS_MAX: Final = 10_000
"""Partitions of one AwaitLeaders."""
LEADER_WAITS_MAX: Final = 1_024
"""Calls of AwaitLeaders that wait on one node."""
LEADER_BALANCE_INTERVAL: Final = 1.0
LEADER_BALANCE_SETTLE: Final = 3.0
"""A preferred leader gets its partitions back when it has been in sync for this long."""
LEADER_TRANSFERS_PER_ROUND: Final = 16
"""Leaderships that one node hands back in one LEADER_BALANCE_INTERVAL."""

# ---- consumer groups
OFFSETS_PARTITIONS: Final = 8
"""Of __consumer_offsets, for ever: a group's partition follows from its name and this."""
GROUP_NAME_CHARS_MAX: Final = 249
CLIENT_NAME_CHARS_MAX: Final = 249
GROUP_MEMBERS_MAX: Final = 1_000
GROUP_TOPICS_MAX: Final = 100
"""Topics of one member."""
GROUPS_DESCRIBED_MAX: Final = 100
"""Groups of one DescribeGroups."""
SESSION_TIMEOUT_MS_MIN: Final = 1_000
SESSION_TIMEOUT_MS_DEFAULT: Final = 2_500
SESSION_TIMEOUT_MS_MAX: Final = 300_000
REBALANCE_TIMEOUT_MS_MIN: Final = 1_000
REBALANCE_TIMEOUT_MS_DEFAULT: Final = 60_000
REBALANCE_TIMEOUT_MS_MAX: Final = 3_600_000
OFFSET_COMMITS_MAX: Final = 10_000
"""Items of one CommitOffsets or ResetOffsets."""
OFFSET_METADATA_BYTES_MAX: Final = 4 * KIB
OFFSETS_RETENTION_MS: Final = 7 * 24 * 3600 * 1000
"""Committed offsets of a group without members are forgotten after this time."""
OFFSETS_EXPIRY_INTERVAL: Final = 600.0
GROUP_COMMAND_BYTES_MAX: Final = BATCH_BYTES_MAX - KIB
"""A command is one record of one batch."""
GROUP_COMMANDS_QUEUED_MAX: Final = 4_096
"""Commands of one partition of __consumer_offsets that wait for the append before."""
GROUPS_READ_BYTES: Final = 64 * KIB
"""Of the groups' log applied in one step of the loop."""
GROUPS_TRIM_RECORDS: Final = 20_000
"""So many commands behind the start of its log a partition's state is written into it, and the log trimmed to there."""
GROUPS_SEGMENT_BYTES: Final = 1 * MIB
"""Of __consumer_offsets: what is trimmed goes by whole segments."""
THIN_CREDITS_DEFAULT: Final = 500
THIN_CREDITS_MAX: Final = 10_000
"""Records of a thin consumer that are not acknowledged."""
THIN_SPREAD_MAX: Final = 100_000
"""So many records of one partition behind one that is not acknowledged, no more are delivered."""
THIN_REBALANCE_TIMEOUT_MS: Final = 10_000

assert PRODUCER_IN_FLIGHT_MAX <= PRODUCER_WINDOW_BATCHES, "a retry within the window must be recognised"
assert BATCH_BYTES_MAX <= ENTRY_BYTES_TARGET
assert FETCH_BYTES_MAX + ENTRY_FRAME_BYTES_MAX <= 2 * GRPC_MESSAGE_BYTES_MAX
assert ENTRY_FRAME_BYTES_MAX + 4 * KIB < GRPC_MESSAGE_BYTES_MAX, "one entry must fit a response"
assert max(FETCH_BYTES_MAX, BATCH_BYTES_MAX) < PLAIN_RECORD_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX
assert ENTRY_FRAME_BYTES_MAX < 1 << 28, "a frame's length is a 4-byte varint"
assert SEGMENT_BYTES_MIN <= SEGMENT_BYTES_DEFAULT <= SEGMENT_BYTES_MAX
assert 3 * HEARTBEAT_INTERVAL < ELECTION_TIMEOUT_MIN < ELECTION_TIMEOUT_MAX
assert BATCH_BYTES_MAX < REPLICATION_WINDOW_BYTES <= PEER_BULK_BYTES_MAX
assert COPY_CHUNK_BYTES <= COPY_CHUNK_BYTES_MAX
assert COPY_CHUNK_BYTES_MAX + ENTRY_FRAME_BYTES_MAX + 4 * KIB < 2 * GRPC_MESSAGE_BYTES_MAX, (
    "with one entry more a piece must fit a message between nodes"
)
assert BATCH_BYTES_MAX <= PARTITION_QUEUE_BYTES_MAX <= NODE_QUEUE_BYTES_MAX
assert GROUP_NAME_CHARS_MAX == TOPIC_NAME_CHARS_MAX, "one pattern checks both"
assert SESSION_TIMEOUT_MS_MIN <= SESSION_TIMEOUT_MS_DEFAULT <= SESSION_TIMEOUT_MS_MAX
assert REBALANCE_TIMEOUT_MS_MIN <= REBALANCE_TIMEOUT_MS_DEFAULT <= REBALANCE_TIMEOUT_MS_MAX
assert ELECTION_TIMEOUT_MAX * 1000 <= SESSION_TIMEOUT_MS_DEFAULT, (
    "a member may be away for as long as an election that is not slow"
)
