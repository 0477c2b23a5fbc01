"""For all tests: what they start can be interrupted, however they themselves were started."""

import signal

# A shell starts what it puts into the background with SIGINT ignored, and every child would inherit that. A handler of
# ours is not inherited: children begin with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
