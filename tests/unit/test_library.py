"""The one audited version of the Raft library."""

from __future__ import annotations

import pytest

from fluxd.raft import library


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose source was not audited must not hold anybody's data."""
    monkeypatch.setattr(library, "AUDITED_SYNCOBJ_SHA256", "0" * 64)
    library.check_library.cache_clear()
    with pytest.raises(library.LibraryError, match=r"install exactly pysyncobj==0\.3\.17"):
        library.check_library()
    library.check_library.cache_clear()


def test_the_installed_version_is_the_audited_one() -> None:
    """What the constraints install."""
    library.check_library()
