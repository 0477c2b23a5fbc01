"""The command line of fluxd: everything it does, it does through the public API (the library `fluxlog`)."""

import os

# gRPC's own remarks ("Got goaway", after Ctrl-Z and fg) are none of the user's business; its errors reach them as ours.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
