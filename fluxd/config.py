"""Settings of a node: flags > environment (`FLUXD_…`) > TOML file > defaults, as one validated object.

Unknown keys are refused wherever they come from, since a misspelt setting that is silently ignored is worse than a
refusal to start; and an error names the source that the value came from.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from fluxd.core import limits

ENV_PREFIX = "FLUXD_"
CONFIG_VARIABLE = "FLUXD_CONFIG"
SECRET_CHARS_MIN = 16
DEFAULT_LISTEN = "127.0.0.1:9640"

# Kubernetes sets such variables for a service that is called "fluxd"; they are not ours.
_SERVICE_LINK = re.compile(r"(^|_)(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")
_WILDCARDS = ("0.0.0.0", "[::]", "")


class ConfigError(Exception):
    """The settings are not usable. The message is one line for people, without the values of secrets."""


class Settings(BaseModel):
    """One node's settings. Times are seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    node_id: int = Field(ge=1, le=65_535)
    """This node's number, unique in the cluster and the same for ever."""
    listen: str = DEFAULT_LISTEN
    """host:port of the one port, for clients and nodes."""
    advertise: str = ""
    """host:port that clients and nodes use to come here. Empty: the own entry in seeds, or listen."""
    seeds: dict[int, str] = {}
    """The nodes that found the cluster, "1@host:port,2@host:port,…", the same on every node. Empty: this node alone."""
    data_dir: Path = Path("fluxd-data")
    cluster_secret: SecretStr = SecretStr("")
    """What nodes prove to each other. The same on every node; needed as soon as there is more than one."""
    cluster_secret_file: Path | None = None
    allow_remote_stop: bool = False
    """Leave for StopNode and KillNode."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, JSON otherwise."""

    scrub_interval: float = Field(default=limits.SCRUB_INTERVAL_DEFAULT, ge=0)
    """What is on the disk is read again and verified about this often, seconds. 0: never."""
    scrub_bytes_per_second: int = Field(default=limits.SCRUB_BYTES_PER_SECOND_DEFAULT, ge=limits.SCRUB_PIECE_BYTES)
    """At most; and at most a twentieth of the time."""
    quarantine_retention: float = Field(default=limits.QUARANTINE_RETENTION_DEFAULT, ge=0)
    """Data that was set aside because it was damaged, or belongs to no topic, is kept so long, seconds; only the last
    of each partition, and none when the disk has no room. 0: not at all."""

    stop_timeout: float = Field(default=5.0, ge=0.1, le=300)
    """SIGTERM: how long handing over and finishing may take."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _parse_seeds(cls, value: object) -> object:
        return parse_seeds(value) if isinstance(value, str | list) else value

    @field_validator("seeds", mode="after")
    @classmethod
    def _check_seeds(cls, seeds: dict[int, str]) -> dict[int, str]:
        if len(seeds) > limits.VOTERS_MAX:
            raise ValueError(f"{len(seeds)} seeds are more than {limits.VOTERS_MAX}")
        for node_id, address in seeds.items():
            if not 1 <= node_id <= 65_535:
                raise ValueError(f"node id {node_id} is not in 1..65535")
            check_address(address)
        if len(set(seeds.values())) != len(seeds):
            raise ValueError("two seeds have the same address")
        return dict(sorted(seeds.items()))

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        split_address(value)
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        put = self.__dict__.__setitem__  # the object is frozen for everybody else
        if not self.advertise:
            put("advertise", self.seeds.get(self.node_id, self.listen))
        try:
            check_address(self.advertise)
        except ValueError as error:
            raise ValueError(f"advertise: {error}") from None
        if not self.seeds:
            put("seeds", {self.node_id: self.advertise})
        if self.node_id not in self.seeds:
            raise ValueError(
                f"node_id {self.node_id} is not in seeds {format_seeds(self.seeds)!r}: "
                "nodes outside the seed list cannot join yet"
            )
        self._read_secret(put)
        return self

    def _read_secret(self, put: Any) -> None:
        if self.cluster_secret_file is not None:
            if self.cluster_secret.get_secret_value():
                raise ValueError("cluster_secret and cluster_secret_file exclude each other")
            try:
                put("cluster_secret", SecretStr(self.cluster_secret_file.read_text().strip()))
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"cluster_secret_file: {error}") from None
        secret = self.cluster_secret.get_secret_value()
        if len(self.seeds) > 1 and len(secret) < SECRET_CHARS_MIN:
            raise ValueError(
                f"a cluster of several nodes needs a cluster_secret_file (or FLUXD_CLUSTER_SECRET) of at least "
                f"{SECRET_CHARS_MIN} characters, the same on every node"
            )

    @property
    def seed_list(self) -> tuple[str, ...]:
        """ "id@host:port", ascending by id: how seed lists are compared."""
        return tuple(f"{node_id}@{address}" for node_id, address in self.seeds.items())


def split_address(address: str) -> tuple[str, int]:
    """Take "host:port" apart; IPv6 hosts stand in brackets.

    Raises:
        ValueError: otherwise.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not 1 <= int(port) <= 65_535 or (":" in host and host[:1] != "["):
        raise ValueError(f"{address!r} is not host:port")
    if any(c.isspace() or c in ",@/" for c in host):
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def check_address(address: str) -> None:
    """An address that others can connect to.

    Raises:
        ValueError: not host:port, or a wildcard.
    """
    host, _ = split_address(address)
    if host in _WILDCARDS:
        raise ValueError(f"{address!r} is not an address that others can connect to; set advertise")


def parse_seeds(value: str | list[Any]) -> dict[int, str]:
    """Read "1@host:port,2@host:port" (or a list of such items).

    Raises:
        ValueError: an item is not id@host:port, or an id appears twice.
    """
    items = value.split(",") if isinstance(value, str) else value
    seeds: dict[int, str] = {}
    for item in items:
        if not str(item).strip():
            continue
        node, at, address = str(item).strip().partition("@")
        if not at or not node.isdecimal():
            raise ValueError(f"{item!r} is not id@host:port")
        if int(node) in seeds:
            raise ValueError(f"node id {int(node)} appears twice")
        seeds[int(node)] = address
    return seeds


def format_seeds(seeds: Mapping[int, str]) -> str:
    """Inverse of `parse_seeds`."""
    return ",".join(f"{node_id}@{address}" for node_id, address in sorted(seeds.items()))


def load(flags: Mapping[str, object], environ: Mapping[str, str] | None = None) -> Settings:
    """Merge all sources and validate.

    Args:
        flags: what was given on the command line; None means not given. "config" names the TOML file.
        environ: os.environ unless given.

    Raises:
        ConfigError: one line that names the key and its source.
    """
    environment = os.environ if environ is None else environ
    given = {key: value for key, value in flags.items() if value is not None}
    file = given.pop("config", None) or environment.get(CONFIG_VARIABLE)
    sources: dict[str, str] = {}
    merged: dict[str, object] = {}
    layers = [(f"in {file}", _from_file(Path(str(file))) if file else {}), ("", _from_environment(environment))]
    for where, layer in [*layers, ("on the command line", given)]:
        for key, value in layer.items():
            if key not in Settings.model_fields:
                name = f"unknown key {key!r} {where}" if where else f"unknown variable {ENV_PREFIX}{key.upper()}"
                raise ConfigError(f"{name}; known are: {', '.join(Settings.model_fields)}")
            merged[key], sources[key] = value, where or f"from {ENV_PREFIX}{key.upper()}"
    if "cluster_secret" in merged and "cluster_secret_file" in merged:
        _keep_the_higher(merged, [layer for _, layer in layers] + [given])
    try:
        return Settings(**merged)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(_describe(error, sources)) from None


def _keep_the_higher(merged: dict[str, object], layers: list[dict[str, object]]) -> None:
    """The secret and its file are one setting: a higher source replaces the other form of a lower one."""
    for layer in reversed(layers):
        forms = [key for key in ("cluster_secret", "cluster_secret_file") if key in layer]
        if len(forms) == 1:
            del merged["cluster_secret_file" if forms[0] == "cluster_secret" else "cluster_secret"]
        if forms:
            return


def _from_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config file {path}: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    out: dict[str, object] = {}
    for name, value in environ.items():
        key = name.removeprefix(ENV_PREFIX)
        if key != name and name != CONFIG_VARIABLE and not _SERVICE_LINK.search(key):
            out[key.lower()] = value
    return out


def _describe(error: ValidationError, sources: Mapping[str, str]) -> str:
    """The first problem, in one line."""
    problem = error.errors(include_url=False, include_context=False)[0]
    key = str(problem["loc"][0]) if problem["loc"] else ""
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{key} is not set: use --{key.replace('_', '-')} or {ENV_PREFIX}{key.upper()}"
    return f"{key} {sources.get(key, '')}: {message}".replace(" :", ":") if key else message
