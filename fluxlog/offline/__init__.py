"""Data directories of stopped nodes, read only: entries, and whether all is sound. See docs/storage-format.md."""
