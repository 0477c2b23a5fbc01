"""One Raft group per partition: pysyncobj's state machine behind a guard. The only importer of pysyncobj."""
