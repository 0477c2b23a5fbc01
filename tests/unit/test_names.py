"""Topic names and configuration: what is refused, and with which words."""

from __future__ import annotations

import pytest

from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.names import TopicConfig, check_configs, check_topic_name, parse_configs
from fluxd.core.types import METADATA_TOPIC


@pytest.mark.parametrize("name", ["a", "orders", "Orders-2.eu_west", "_x", "...", "-", "0", "a" * 249])
def test_good_names(name: str) -> None:
    """Kafka's rule."""
    check_topic_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a b", "a/b", "../x", "ä", "a\n", "a\x00", "٣", "a" * 250, "x" * 100_000, "\udc80"]
)
def test_bad_names(name: str) -> None:
    """The message says what is allowed, and does not repeat a name of any length."""
    with pytest.raises(FluxError) as caught:
        check_topic_name(name)
    assert caught.value.reason is Reason.INVALID_TOPIC_NAME
    assert "249" in caught.value.message
    assert len(caught.value.message) < 600


def test_names_of_the_cluster_itself() -> None:
    """They are not for users."""
    check_topic_name(METADATA_TOPIC, internal_allowed=True)
    with pytest.raises(FluxError, match="the cluster's own") as caught:
        check_topic_name(METADATA_TOPIC)
    assert caught.value.reason is Reason.INVALID_TOPIC_NAME


def test_configuration_has_defaults_and_bounds() -> None:
    """Both bounds are inclusive."""
    assert parse_configs({}) == TopicConfig(segment_bytes=limits.SEGMENT_BYTES_DEFAULT)
    for size in (limits.SEGMENT_BYTES_MIN, limits.SEGMENT_BYTES_MAX):
        check_configs({"segment.bytes": str(size)})
        assert parse_configs({"segment.bytes": str(size)}).segment_bytes == size


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "-1",
        "65535",
        "1073741825",
        "1e6",
        " 65536",
        "65_536",
        "\uff16\uff15\uff15\uff13\uff16\uff10",
        "9" * 5000,
    ],
)
def test_bad_values(value: str) -> None:
    """Key, value and bounds are named."""
    with pytest.raises(FluxError, match=r"segment.bytes=.*65536 to 1073741824") as caught:
        check_configs({"segment.bytes": value})
    assert caught.value.reason is Reason.INVALID_CONFIG
    assert len(caught.value.message) < 600


def test_retention() -> None:
    """-1 is no bound; 0 is one."""
    config = parse_configs({"retention.ms": "-1", "retention.bytes": "0", "segment.ms": "1000"})
    assert (config.retention_ms, config.retention_bytes, config.segment_ms) == (-1, 0, 1_000)
    assert (TopicConfig().retention_ms, TopicConfig().retention_bytes) == (limits.RETENTION_MS_DEFAULT, -1)
    for key, value in (("retention.ms", "-2"), ("retention.bytes", str(1 << 63)), ("segment.ms", "999")):
        with pytest.raises(FluxError, match=key):
            check_configs({key: value})


def test_unknown_keys() -> None:
    """They are refused, not kept for later."""
    with pytest.raises(FluxError, match=r"'retention.hours'; known: .*segment.bytes") as caught:
        check_configs({"retention.hours": "1", "segment.bytes": "65536"})
    assert caught.value.reason is Reason.INVALID_CONFIG
