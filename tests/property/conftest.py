"""No timed assertions: how long an example takes on a busy machine proves nothing."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
