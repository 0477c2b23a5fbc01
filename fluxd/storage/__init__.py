"""Files: what is durable, what is not yet, and how to tell after a crash."""
