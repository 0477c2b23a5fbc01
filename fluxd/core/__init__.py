"""Pure decisions: no I/O, no clock, no asyncio. Everything here can be called from a test with plain values."""
