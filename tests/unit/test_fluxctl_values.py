"""What fluxctl reads from its command line, and how it shows values."""

from __future__ import annotations

import json

import pytest
import typer

from fluxctl.__main__ import hoist
from fluxctl.describe import epoch_text
from fluxctl.output import milliseconds, size
from fluxctl.positions import Kind, Position, parse_position
from fluxctl.tally import line_ranges
from fluxctl.template import compile_template
from fluxctl.topics import parse_configs
from fluxlog.entry import FetchedRecord

RECORD = FetchedRecord(
    offset=7,
    value=b"v\xff",
    key=None,
    headers=[("a", b"1"), ("b", None)],
    timestamp_ms=5,
    append_time_ms=6,
    leader_epoch=3,
)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("start", Position(Kind.START)),
        ("end", Position(Kind.END)),
        ("0", Position(Kind.OFFSET, 0)),
        ("12", Position(Kind.OFFSET, 12)),
        ("-3", Position(Kind.BEFORE_END, 3)),
        ("@1700000000000", Position(Kind.TIME, 1_700_000_000_000)),
        ("@-5m", Position(Kind.TIME, 1_000_000 - 300_000)),
        ("@-250ms", Position(Kind.TIME, 999_750)),
        ("@1970-01-01T00:00:01+00:00", Position(Kind.TIME, 1_000)),
        ("@1970-01-01T00:00:01Z", Position(Kind.TIME, 1_000)),
    ],
)
def test_a_position_is_parsed(text: str, position: Position) -> None:
    assert parse_position(text, now_ms=1_000_000) == position


@pytest.mark.parametrize("text", ["", "x", "-0", "-", "1.5", "@", "@soon", "@-5y", "--3", "²"])
def test_anything_else_is_no_position(text: str) -> None:
    with pytest.raises(ValueError, match=r"none of|no time"):
        parse_position(text)


def test_a_template_fills_every_field() -> None:
    render = compile_template(r"%t-%p@%o %T %A [%k|%v] %h %K/%V %%\t\n")
    assert render("orders", 2, RECORD) == b"orders-2@7 5 6 [|v\xff] a=1,b= -1/2 %\t\n"


@pytest.mark.parametrize("text", ["%x", "%", "\\q", "\\"])
def test_an_unknown_sequence_in_a_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown"):
        compile_template(text)


def test_json_lines_keep_null_apart_from_empty_and_bytes_that_are_no_text() -> None:
    data = json.loads(compile_template("json")("orders", 2, RECORD))
    assert data["key"] is None
    assert data["value_base64"] == "dv8="
    assert data["headers"] == [{"name": "a", "value": "1"}, {"name": "b", "value": None}]


def test_options_for_every_command_may_stand_anywhere() -> None:
    assert hoist(["topics", "list", "--bootstrap", "a:1", "--verbose"]) == [
        "--bootstrap", "a:1", "--verbose", "topics", "list",
    ]  # fmt: skip
    assert hoist(["produce", "t", "--bootstrap=a:1", "--", "--verbose"]) == [
        "--bootstrap=a:1", "produce", "t", "--", "--verbose",
    ]  # fmt: skip


def test_configs_are_pairs() -> None:
    assert parse_configs(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    for bad in ("a", "=1"):
        with pytest.raises(typer.BadParameter):
            parse_configs([bad])


def test_line_numbers_are_shown_as_ranges() -> None:
    assert line_ranges([3, 1, 2, 7]) == "1-3, 7"
    assert line_ranges(range(0, 100, 2)).endswith("(42 more ranges)")


def test_values_are_shown_with_their_unit() -> None:
    assert [milliseconds(value) for value in (None, 0, 999, 1_500, 600_000)] == [
        "never", "0 ms", "999 ms", "1.5 s", "10 min",
    ]  # fmt: skip
    assert [size(value) for value in (0, 1023, 1536, 5 << 30, 5 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 GiB", "5120.0 GiB",
    ]  # fmt: skip
    assert epoch_text(5) == "5"
    assert epoch_text((1 << 32) + 5) == "1/5"
