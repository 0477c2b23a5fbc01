"""How commands end when something of the system fails: one clear line, the documented exit code, nothing lost."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from fluxctl import produce as producing
from fluxctl.__main__ import app, hoist
from fluxctl.interrupts import Interrupts
from fluxctl.lines import Line
from fluxctl.output import stderr_console, stdout_console, table
from tests.unit.fluxctl_run import run
from tests.unit.fluxlog_fake import FakeCluster, Fault


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster(1)
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def no_local_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLUXCTL_DATA_DIR", str(tmp_path / "none"))


def exit_code_of(*arguments: str) -> int:
    """Of a command on the process's own streams."""
    with pytest.raises(SystemExit) as ended:
        app(hoist(arguments), prog_name="fluxctl")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def the_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def broken() -> Iterator[io.TextIOWrapper]:
    """A pipe whose reader has gone."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w", encoding="utf-8") as stream:
        yield stream


# ---- errors of the system


def test_a_directory_holds_no_lines(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.create("t")
    assert the_line(run(cluster, "produce", "t", tmp_path)) == f"error: {tmp_path} is a directory"


def test_a_file_that_is_not_there_is_named(cluster: FakeCluster, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert the_line(run(cluster, "produce", "t", missing)) == f"error: {missing}: No such file or directory"


def test_a_data_directory_that_cannot_be_made_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = the_line(run(None, "cluster", "up", "--data-dir", tmp_path / "file" / "data"))
    assert line.startswith(f"error: {tmp_path}/file/data")
    assert line.endswith(": Not a directory")
    (tmp_path / "data" / "cluster.json").mkdir(parents=True)
    line = the_line(run(None, "cluster", "down", "--data-dir", tmp_path / "data"))
    assert line == f"error: {tmp_path}/data/cluster.json: Is a directory"


def ends_badly(then: Callable[[], None]) -> Callable[..., Iterator[list[Line]]]:
    """Lines that arrive, and what happens before the next ones."""

    def read(descriptor: int, *, linger: float) -> Iterator[list[Line]]:
        yield [b"a", b"b"]
        then()
        yield [b"c"]

    return read


def test_an_input_that_fails_in_the_middle_costs_no_report(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before is sent, waited for and told; then the error."""

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    cluster.create("t")
    monkeypatch.setattr(producing, "read_lines", ends_badly(fail))
    (tmp_path / "lines").touch()
    result = run(cluster, "produce", "t", tmp_path / "lines")
    assert "2 lines, 2 acknowledged, 0 rejected, 0 unknown" in result.stdout
    assert the_line(result).startswith("error: input after line 2 cannot be read: Input/output error — ")
    assert cluster.topics["t"][0].values == [b"a", b"b"]
    result = run(cluster, "produce", "t", tmp_path / "lines", "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["input_error"] == "Input/output error"


def test_a_second_ctrl_c_costs_no_report(cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it comes after the first one."""

    def interrupt_twice() -> None:
        assert cluster.unanswered.wait(20)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    cluster.create("t")
    cluster.faults[0].append(Fault.SILENCE)
    monkeypatch.setattr(producing, "read_lines", ends_badly(interrupt_twice))
    (tmp_path / "lines").touch()
    result = run(cluster, "produce", "t", tmp_path / "lines", "--batch-lines", "2")
    assert result.exit_code == 130
    assert "t: 2 lines, 0 acknowledged, 0 rejected, 2 unknown" in result.stdout
    assert "input after line 2 was not sent" in result.stderr


def test_the_second_ctrl_c_is_an_exception_where_that_is_wanted() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert (interrupts.requested, interrupts.insisted) == (True, False)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


class _CtrlC(io.StringIO):
    """A terminal on which Ctrl-C is typed."""

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["topics delete t", "groups delete g"])
def test_ctrl_c_instead_of_an_answer_is_130(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(sys, "stdin", _CtrlC())
    assert exit_code_of(*command.split()) == 130


def test_a_position_that_no_partition_can_have_is_wrong_usage(cluster: FakeCluster) -> None:
    cluster.create("t")
    for offset in ("18446744073709551616", "@18446744073709551616", "@9999-12-31T23:59:59-14:00"):
        assert run(cluster, "consume", "t", "--exit-at-end", "--offset", offset).exit_code == 2, offset
    assert run(cluster, "topics", "offsets", "t", "-p", str(2**32)).exit_code == 2
    assert run(cluster, "consume", "t", "--exit-at-end", "--offset", "@-99999999d").exit_code == 0


# ---- output that cannot be written


def test_a_reader_that_has_enough_is_no_error(
    cluster: FakeCluster, broken: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.create("t")
    monkeypatch.setattr(sys, "stdout", broken)
    assert exit_code_of("topics", "describe", "--bootstrap", cluster.addresses[1]) == 0
    broken.write("what follows goes nowhere")
    broken.flush()


def test_an_exit_code_that_tells_something_counts_although_nobody_reads(
    cluster: FakeCluster, broken: io.TextIOWrapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.create("t")
    cluster.faults[0].append(Fault.INVALID_ARGUMENT)
    (tmp_path / "lines").write_bytes(b"a\n")
    monkeypatch.setattr(sys, "stdout", broken)
    assert exit_code_of("produce", "t", str(tmp_path / "lines"), "--bootstrap", cluster.addresses[1]) == 3


def test_notes_that_nobody_reads_end_nothing(broken: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the thread that writes them."""
    monkeypatch.setattr(sys, "stderr", broken)
    console = stderr_console()
    for _ in range(2):
        console.print("a batch goes out again")
    assert console.quiet


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.create("t")
    (tmp_path / "lines").write_bytes(b"a\n")
    assert run(cluster, "produce", "t", tmp_path / "lines").exit_code == 0
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert exit_code_of("consume", "t", "-b", "-e", "--bootstrap", cluster.addresses[1]) == 1
    assert capsys.readouterr().err == "error: stdout: No space left on device\n"


# ---- what is shown is what is there


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    stdout_console().print("[/x] [bold]b[/bold] :smile:")
    stderr_console().print("[/x] :smile:")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("[/x] [bold]b[/bold] :smile:\n", "[/x] :smile:\n")


def test_lines_in_a_pipe_are_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    console, long = stdout_console(), "x " * 5_000 + "x"
    console.print(table(("A", "B"), [(long, long)]))
    console.print(long)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == ["A", "x", "x"]
