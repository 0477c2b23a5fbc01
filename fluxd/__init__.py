"""The server of fluxd: a replicated, partitioned log over Raft and gRPC."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its remarks are no JSON, and say nothing that our events do not

VERSION = "0.1.0"
