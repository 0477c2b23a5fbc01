"""--format of `consume`: a template for each record, as kcat has it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable

from fluxlog.batch import Headers
from fluxlog.entry import FetchedRecord

SYNTAX = (
    r"%k key, %v value, %o offset, %p partition, %t topic, %T the producer's timestamp and %A the append time "
    r"(Unix ms), %h headers (k=v,…), %K and %V lengths of key and value in bytes (-1: null), %% a percent sign; "
    r"\n \t \r \0 \\"
)
DEFAULT = r"%v\n"
JSON = "json"
_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}

Render = Callable[[str, int, FetchedRecord], bytes]


def _bytes_or_nothing(value: bytes | None) -> bytes:
    return b"" if value is None else value


def _headers(headers: Headers) -> bytes:
    return b",".join(name.encode() + b"=" + _bytes_or_nothing(value) for name, value in headers)


def _length(value: bytes | None) -> bytes:
    return b"-1" if value is None else b"%d" % len(value)


_FIELDS: dict[str, Render] = {
    "k": lambda topic, partition, record: _bytes_or_nothing(record.key),
    "v": lambda topic, partition, record: _bytes_or_nothing(record.value),
    "o": lambda topic, partition, record: b"%d" % record.offset,
    "p": lambda topic, partition, record: b"%d" % partition,
    "t": lambda topic, partition, record: topic.encode(),
    "T": lambda topic, partition, record: b"%d" % record.timestamp_ms,
    "A": lambda topic, partition, record: b"%d" % record.append_time_ms,
    "h": lambda topic, partition, record: _headers(record.headers),
    "K": lambda topic, partition, record: _length(record.key),
    "V": lambda topic, partition, record: _length(record.value),
}


def compile_template(text: str) -> Render:
    """Make a function of a template; "json" gives one JSON object a line.

    Raises:
        ValueError: an unknown % or backslash sequence.
    """
    if text == JSON:
        return _json_line
    parts: list[bytes | Render] = []
    characters = iter(text)
    for character in characters:
        if character == "%":
            name = next(characters, "")
            if name != "%" and name not in _FIELDS:
                raise ValueError(f"%{name} is unknown; there are: {SYNTAX}")
            parts.append(b"%" if name == "%" else _FIELDS[name])
        elif character == "\\":
            name = next(characters, "")
            if name not in _ESCAPES:
                raise ValueError(f"\\{name} is unknown; there are: {SYNTAX}")
            parts.append(_ESCAPES[name])
        else:
            parts.append(character.encode(errors="surrogateescape"))
    return _joined(parts)


def _joined(parts: Iterable[bytes | Render]) -> Render:
    fixed = tuple(parts)

    def render(topic: str, partition: int, record: FetchedRecord) -> bytes:
        return b"".join(part if isinstance(part, bytes) else part(topic, partition, record) for part in fixed)

    return render


def _text(name: str, value: bytes | None) -> dict[str, object]:
    """A field as text where it is UTF-8, else in base64 under another name."""
    try:
        return {name: None if value is None else value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value or b"").decode()}


def _json_line(topic: str, partition: int, record: FetchedRecord) -> bytes:
    data: dict[str, object] = {
        "topic": topic,
        "partition": partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "append_time_ms": record.append_time_ms,
        "leader_epoch": record.leader_epoch,
        **_text("key", record.key),
        **_text("value", record.value),
        "headers": [{"name": name, **_text("value", value)} for name, value in record.headers],
    }
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"
