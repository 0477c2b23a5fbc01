"""Values of options that several commands have."""

from __future__ import annotations

import typer

from fluxlog.codec import Codec

PARTITION_MAX = 9_999
"""The highest number that a partition can have."""
NODES_MAX = 5
"""Nodes that can found a cluster; others cannot join yet."""


def codec_of(name: str) -> Codec:
    """The codec that --codec names.

    Raises:
        typer.BadParameter: there is none of that name.
    """
    try:
        return Codec[name.upper()]
    except KeyError as error:
        raise typer.BadParameter(f"{name!r} is none of none, zstd, lz4, gzip", param_hint="--codec") from error
