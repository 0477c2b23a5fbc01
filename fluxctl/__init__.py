"""The command line of fluxd: everything it does, it does through the public API (the library `fluxlog`)."""
