"""What a topic may be called and how it may be configured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason

INTERNAL_PREFIX = "__"
"""Topics of the cluster itself: __cluster_metadata, __consumer_offsets."""

SEGMENT_BYTES = "segment.bytes"
SEGMENT_MS = "segment.ms"
RETENTION_MS = "retention.ms"
RETENTION_BYTES = "retention.bytes"
TOPIC_CONFIGS = (RETENTION_BYTES, RETENTION_MS, SEGMENT_BYTES, SEGMENT_MS)

_ALLOWED = re.compile(rf"[a-zA-Z0-9._-]{{1,{limits.TOPIC_NAME_CHARS_MAX}}}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_MESSAGE_CHARS_MAX = 300


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """Configuration of a topic, parsed; what is not set has its default."""

    segment_bytes: int = limits.SEGMENT_BYTES_DEFAULT
    """A segment file is rolled at this size; limits.SEGMENT_BYTES_MIN..MAX."""
    segment_ms: int = limits.SEGMENT_MS_DEFAULT
    """… or when its first record is this old, with the next one."""
    retention_ms: int = limits.RETENTION_MS_DEFAULT
    """Records are kept this long, by append time and in whole segments; -1: for ever."""
    retention_bytes: int = -1
    """Bytes kept of each partition at least, in whole segments; -1: all."""


def check_topic_name(name: str, *, internal_allowed: bool = False) -> None:
    """Check a topic's name.

    Args:
        internal_allowed: names of the cluster's own topics pass as well.

    Raises:
        FluxError: INVALID_TOPIC_NAME, with what is allowed.
    """
    if not _ALLOWED.fullmatch(name) or name in (".", ".."):
        raise FluxError(
            Reason.INVALID_TOPIC_NAME,
            f"invalid topic name {_shown(name)}: 1 to {limits.TOPIC_NAME_CHARS_MAX} characters out of a-z A-Z 0-9 . _ "
            '- are allowed, and neither "." nor ".."',
        )
    if name.startswith(INTERNAL_PREFIX) and not internal_allowed:
        raise FluxError(
            Reason.INVALID_TOPIC_NAME,
            f'invalid topic name {_shown(name)}: names that begin with "{INTERNAL_PREFIX}" are the cluster\'s own',
        )


def check_group_name(name: str) -> None:
    """Check a consumer group's name: characters as of topics.

    Raises:
        FluxError: INVALID_GROUP_NAME, with what is allowed.
    """
    if not _ALLOWED.fullmatch(name):
        raise FluxError(
            Reason.INVALID_GROUP_NAME,
            f"invalid group name {_shown(name)}: 1 to {limits.GROUP_NAME_CHARS_MAX} characters out of a-z A-Z 0-9 . _ "
            "- are allowed",
        )


def parse_configs(configs: Mapping[str, str]) -> TopicConfig:
    """Parse a topic's configuration.

    Raises:
        FluxError: INVALID_CONFIG: an unknown key, or a value out of its bounds.
    """
    unknown = sorted(set(configs) - set(TOPIC_CONFIGS))
    if unknown:
        raise FluxError(
            Reason.INVALID_CONFIG,
            f"unknown topic configuration {_shown(unknown[0])}; known: {', '.join(TOPIC_CONFIGS)}",
            metadata={"key": unknown[0][:_MESSAGE_CHARS_MAX]},
        )
    default, most = TopicConfig(), limits.RETENTION_MAX
    return TopicConfig(
        _number(configs, SEGMENT_BYTES, default.segment_bytes, limits.SEGMENT_BYTES_MIN, limits.SEGMENT_BYTES_MAX),
        _number(configs, SEGMENT_MS, default.segment_ms, limits.SEGMENT_MS_MIN, most),
        _number(configs, RETENTION_MS, default.retention_ms, -1, most),
        _number(configs, RETENTION_BYTES, default.retention_bytes, -1, most),
    )


def check_configs(configs: Mapping[str, str]) -> None:
    """As `parse_configs`, for the errors only."""
    parse_configs(configs)


def _number(configs: Mapping[str, str], key: str, default: int, least: int, most: int) -> int:
    value = configs.get(key)
    if value is None:
        return default
    if _NUMBER.fullmatch(value) and least <= int(value) <= most:
        return int(value)
    raise FluxError(
        Reason.INVALID_CONFIG,
        f"{key}={_shown(value)} is not a whole number from {least} to {most}",
        metadata={"key": key, "value": value[:_MESSAGE_CHARS_MAX], "min": str(least), "max": str(most)},
    )


def _shown(text: str) -> str:
    """Quoted for a message, not longer than a message should be."""
    return repr(text if len(text) <= _MESSAGE_CHARS_MAX else text[:_MESSAGE_CHARS_MAX] + "…")
