"""How each language's program of examples/thin is built: its own ordinary tools and packages, in a directory apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "thin"
PROTOS = [f"fluxlog/v1/{name}.proto" for name in ("record", "errors", "log", "consume")]
_BUILD_SECONDS = 1_200
_PROTOC = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
_GO_TOOLS = (
    "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2",
)


class MissingToolchain(Exception):
    """What is missing to build a language's program."""


def _need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise MissingToolchain(f"not on this machine: {', '.join(missing)}")


def _copy(language: str, directory: Path) -> None:
    shutil.copytree(EXAMPLES / language, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))


def _run(directory: Path, command: Sequence[str], **environment: str) -> None:
    done = subprocess.run(
        command, cwd=directory, env=os.environ | environment, capture_output=True, text=True, timeout=_BUILD_SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def _python(directory: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "python" / "thin.py")]


def _go(directory: Path) -> list[str]:
    _need("go")
    _copy("go", directory)
    tools = directory / "bin"
    for tool in _GO_TOOLS:
        _run(directory, ["go", "install", tool], GOBIN=str(tools))
    package = [f"{option}_opt=M{proto}=thin/fluxlogv1" for option in ("--go", "--go-grpc") for proto in PROTOS]
    plugins = [f"--plugin=protoc-gen-{name}={tools}/protoc-gen-{name}" for name in ("go", "go-grpc")]
    outputs = ["--go_out=.", "--go_opt=module=thin", "--go-grpc_out=.", "--go-grpc_opt=module=thin"]
    _run(directory, [*_PROTOC, *plugins, *outputs, *package, *PROTOS])
    _run(directory, ["go", "build", "-o", "thin", "."])
    return [str(directory / "thin")]


def _node(directory: Path) -> list[str]:
    _need("node", "npm")
    _copy("node", directory)
    _run(directory, ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"])
    return ["env", f"FLUXLOG_PROTO={ROOT / 'proto'}", "node", str(directory / "thin.js")]


def _java(directory: Path) -> list[str]:
    _need("java", "javac", "mvn")
    _copy("java", directory)
    goals = ["package", "dependency:copy-dependencies", f"-Dfluxlog.proto={ROOT / 'proto'}"]
    _run(directory, ["mvn", "--batch-mode", "--quiet", *goals])
    return ["java", "-cp", f"{directory}/target/classes:{directory}/target/dependency/*", "Thin"]


def _rust(directory: Path) -> list[str]:
    _need("cargo")
    _copy("rust", directory)
    protoc = directory / "protoc"
    protoc.write_text(f'#!/bin/sh\nexec {sys.executable} -m grpc_tools.protoc "$@"\n')
    protoc.chmod(0o755)
    # Dependencies are compiled once for all test runs of this checkout.
    target = ROOT / ".rust-target"
    _run(
        directory, ["cargo", "build", "--quiet"],
        PROTOC=str(protoc), FLUXLOG_PROTO=str(ROOT / "proto"), CARGO_TARGET_DIR=str(target),
    )  # fmt: skip
    return [str(target / "debug" / "thin")]


BUILDERS: Mapping[str, Callable[[Path], list[str]]] = {
    "go": _go,
    "java": _java,
    "node": _node,
    "python": _python,
    "rust": _rust,
}
