"""The table of failure tests: what happened, how long nothing could be written, what was lost, what was double."""

from __future__ import annotations

from dataclasses import dataclass

from fluxlog.checker import Verdict


@dataclass(frozen=True, slots=True)
class Row:
    """One event."""

    event: str
    unavailable_ms: float
    records: int
    """In the log."""
    lost: int
    duplicated: int
    verdict: str


def row_of(event: str, unavailable_ms: float, verdict: Verdict) -> Row:
    """From a judged history."""
    broken = {one.name: one.count for one in verdict.errors}
    lost = broken.get("lost_write", 0) + broken.get("unseen", 0)
    records = verdict.summary["records_in_logs"]
    assert isinstance(records, int)
    judged = "valid" if verdict.valid else ", ".join([*broken, *verdict.gaps])
    return Row(event, unavailable_ms, records, lost, broken.get("duplicate", 0), judged)


def lines_of(rows: list[Row]) -> list[str]:
    """As text, in columns."""
    head = ("event", "unavailable ms", "records", "lost", "duplicated", "checker")
    cells = [head] + [
        (
            row.event,
            f"{row.unavailable_ms:,.0f}",
            f"{row.records:,}",
            str(row.lost),
            str(row.duplicated),
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        "  ".join(
            text.rjust(width) if 0 < column < 5 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
