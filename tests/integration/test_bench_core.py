"""What `make bench-core` measures is the real thing: three replicas on real files, equal in the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fluxd.raft.proposal import Append, AppendResult, Committed
from fluxlog.batch import encode_batch
from tests.bench.figures import Cases
from tests.bench.replicas import Replicas


def test_what_is_committed_is_in_three_files(tmp_path: Path) -> None:
    """Two groups take three entries each; all replicas have the same bytes, and no entry was sent less than once."""

    async def run() -> float:
        async with Replicas(tmp_path, groups=2) as replicas:
            for number, leader in enumerate(replicas.leaders):
                for offset in range(3):
                    answer: asyncio.Future[AppendResult] = asyncio.get_running_loop().create_future()
                    leader.submit(Append(encode_batch([b"%d" % number]), 1, answer.set_result))
                    result = await asyncio.wait_for(answer, 20)
                    assert isinstance(result, Committed)
                    assert result.base_offset == offset
            assert {replica.log.keeps_cached == replica.guard.is_leader for replica in replicas.replicas()} == {True}
            return await replicas.sends_per_entry()

    sends = asyncio.run(run())
    assert sends >= 1
    for number in range(2):
        name = f"partitions/{bytes(range(16)).hex()}-{number}/00000000000000000001.seg"
        files = [(tmp_path / node / name).read_bytes() for node in "123"]
        assert len(files[0]) > 4 * 60
        assert files[0] == files[1] == files[2]


def _fail() -> None:
    raise RuntimeError("no room")


def test_a_measurement_that_fails_costs_no_other() -> None:
    """It is named in the report, beside the figures of the others."""
    cases = Cases()
    cases.note("one", "MB/s", 3.0)
    with cases.surviving("two"):
        _fail()
    cases.note("one", "MB/s", 1.0)
    cases.note("one", "MB/s", 2.0)
    report = cases.as_json()
    assert report["failures"] == ["two: RuntimeError: no room"]
    assert [(case["name"], case["median"]) for case in report["cases"]] == [("one", 2.0)]
