"""The engine, the images and the clusters of these tests, and the table of what they measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import docker
import pytest

from tests.docker import engine as engine_module
from tests.docker.compose import ComposeProject
from tests.docker.engine import IMAGE, PROJECT
from tests.docker.table import Row, lines_of

_ROWS = pytest.StashKey[list[Row]]()
_FACTS = pytest.StashKey[list[str]]()
_REQUIRED = ("CI", "REQUIRE_DOCKER")
"""Variables: with either of them set these tests fail where they cannot run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests below this directory need an engine."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    """Nothing was measured yet."""
    config.stash[_ROWS], config.stash[_FACTS] = [], []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was measured."""
    facts, rows = config.stash[_FACTS], config.stash[_ROWS]
    if facts or rows:
        terminalreporter.section("containers")
        for line in [*facts, "", *lines_of(rows)] if rows else facts:
            terminalreporter.write_line(line)


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """Takes a row of the table."""
    return request.config.stash[_ROWS]


@pytest.fixture(scope="session")
def facts(request: pytest.FixtureRequest) -> list[str]:
    """Takes a line to be printed in the end."""
    return request.config.stash[_FACTS]


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The engine of this machine."""
    try:
        client = engine_module.connect()
    except RuntimeError as why:
        if any(os.environ.get(name) for name in _REQUIRED):
            pytest.fail(str(why), pytrace=False)
        pytest.skip(f"{why} (deploy/with-engine make docker-test brings one)")
    engine_module.sweep(client)
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient) -> str:
    """Name of the image under test."""
    engine_module.build_image()
    return IMAGE


@pytest.fixture(scope="session")
def projects(engine: docker.DockerClient, image: str, facts: list[str]) -> Iterator[Callable[[str], ComposeProject]]:
    """Brings clusters up; they are removed in the end."""
    with ExitStack() as stack:

        def up(name: str) -> ComposeProject:
            project = stack.enter_context(ComposeProject(engine, f"{PROJECT}-{name}", image))
            facts.append(f"project {name}: {project.healthy_after_s:.1f} s from `up` to healthy")
            return project

        yield up


@pytest.fixture(scope="session")
def cluster(projects: Callable[[str], ComposeProject]) -> ComposeProject:
    """Three nodes, shared by the tests that heal what they break."""
    return projects("shared")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows its cluster's logs."""
    report = yield
    project = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(project, ComposeProject):
        report.sections.append(("logs of the nodes", project.logs()))
    return report
