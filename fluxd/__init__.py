"""The server of fluxd: a replicated, partitioned log over Raft and gRPC."""

VERSION = "0.1.0"
