"""States in a log: cut into chunks, and put together again."""

from __future__ import annotations

import random

import pytest

from fluxd.core import state_chunks as module
from fluxd.core.errors import CorruptDataError
from fluxd.core.state_chunks import StateSearch, state_chunks
from fluxd.core.types import Offset

STATE = random.Random(1).randbytes(1_000)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 100)


def test_chunks_of_two_states_do_not_mix() -> None:
    """Two leaders took them at the same offset, and wrote the same state in different bytes: each is found whole."""
    other = STATE[:-1] + b"x"
    first, second = state_chunks(Offset(5), STATE), state_chunks(Offset(5), other)
    search = StateSearch(Offset(5))
    looked = [search.look(chunk) for chunk in (*first[:4], *second, *first[4:])]
    assert [each for each in looked if each is not None] == [other, STATE]
    assert search.position == 5 + len(looked)


def test_a_chunk_that_was_written_twice_counts_once() -> None:
    """A proposal whose outcome was unknown is made again."""
    first, *rest = state_chunks(Offset(0), STATE)
    search = StateSearch(Offset(0))
    assert [search.look(chunk) for chunk in (first, first, *rest)][-1] == STATE


def test_a_state_that_is_another_than_was_written_is_refused() -> None:
    """By its checksum."""
    chunks = state_chunks(Offset(0), STATE)
    chunks[3].data = bytes(len(chunks[3].data))
    search = StateSearch(Offset(0))
    with pytest.raises(CorruptDataError, match="another checksum"):
        for chunk in chunks:
            search.look(chunk)


def test_chunks_of_an_earlier_version_have_no_checksum() -> None:
    """They are put together all the same."""
    chunks = state_chunks(Offset(0), STATE)
    for chunk in chunks:
        chunk.ClearField("checksum")
    search = StateSearch(Offset(0))
    assert [search.look(chunk) for chunk in chunks][-1] == STATE
