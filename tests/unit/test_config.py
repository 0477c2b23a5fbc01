"""Settings: precedence, refusals, and what an operator reads when something is wrong."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from fluxd.__main__ import serve
from fluxd.config import ConfigError, Settings, format_seeds, load, parse_seeds, split_address

SECRET = "0123456789abcdef"
THREE = "1@a:1,2@b:2,3@c:3"
SETTINGS_PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_defaults_make_a_single_node() -> None:
    """A node id alone is a usable configuration: a cluster of one, on loopback."""
    settings = load({"node_id": 1}, {})
    assert settings.seeds == {1: "127.0.0.1:9640"}
    assert settings.advertise == "127.0.0.1:9640"
    assert settings.seed_list == ("1@127.0.0.1:9640",)


def test_the_reference_has_every_setting_and_its_default() -> None:
    """docs/settings.md; those without a flag are in italics."""
    rows = re.findall(r"^\| (\*?)`(\w+)`\*? \| (.*?) \|", SETTINGS_PAGE.read_text(), re.MULTILINE)
    assert [name for _, name, _ in rows] == list(Settings.model_fields)
    flags = inspect.signature(serve).parameters
    defaults = Settings(node_id=1)
    for italic, name, values in rows:
        assert (name not in flags) is bool(italic), name
        default = getattr(defaults, name)
        if name.startswith(("scrub", "quarantine", "stop")):
            assert values.endswith(f"; {default:.0f}"), name
        elif name in ("listen", "data_dir", "log_level", "log_format"):
            assert values.endswith(f"; `{default}`"), name


def test_precedence(tmp_path: Path) -> None:
    """Flags win over the environment, which wins over the file, which wins over defaults."""
    file = tmp_path / "fluxd.toml"
    file.write_text('node_id = 1\nlisten = "f:1"\nlog_level = "error"\ndata_dir = "/file"\n')
    flags = {"config": file, "listen": "flag:1", "data_dir": None}
    settings = load(flags, {"FLUXD_LISTEN": "env:1", "FLUXD_LOG_LEVEL": "debug"})
    assert settings.listen == "flag:1"
    assert settings.log_level == "debug"
    assert settings.data_dir == Path("/file")
    assert settings.log_format == "auto"


def test_config_file_from_environment(tmp_path: Path) -> None:
    """FLUXD_CONFIG names the file, too."""
    file = tmp_path / "fluxd.toml"
    file.write_text("node_id = 7\n")
    assert load({}, {"FLUXD_CONFIG": str(file)}).node_id == 7


def test_secret_forms_override_each_other_by_source(tmp_path: Path) -> None:
    """A secret file on the command line replaces a secret from the environment."""
    file = tmp_path / "secret"
    file.write_text(f"  {SECRET}-of-file \n")
    flags = {"node_id": 1, "seeds": THREE, "cluster_secret_file": file}
    settings = load(flags, {"FLUXD_CLUSTER_SECRET": SECRET})
    assert settings.cluster_secret.get_secret_value() == f"{SECRET}-of-file"


def test_advertise_is_the_own_seed() -> None:
    """Listening on all interfaces, the address for others comes from the seed list."""
    settings = load({"node_id": 2, "listen": "0.0.0.0:2", "seeds": THREE}, {"FLUXD_CLUSTER_SECRET": SECRET})
    assert settings.advertise == "b:2"


@pytest.mark.parametrize(
    ("flags", "environ", "says"),
    [
        ({}, {}, "node_id is not set: use --node-id or FLUXD_NODE_ID"),
        ({"node_id": 0}, {}, "node_id on the command line: Input should be greater than or equal to 1"),
        ({}, {"FLUXD_NODE_ID": "two"}, "node_id from FLUXD_NODE_ID: Input should be a valid integer"),
        ({"node_id": 1}, {"FLUXD_LISTNE": "x"}, "unknown variable FLUXD_LISTNE; known are: node_id"),
        ({"node_id": 1, "listen": "nowhere"}, {}, "'nowhere' is not host:port"),
        ({"node_id": 1, "listen": "0.0.0.0:1"}, {}, "set advertise"),
        ({"node_id": 1, "seeds": "1@a:1,1@b:1"}, {}, "node id 1 appears twice"),
        ({"node_id": 1, "seeds": "1@a:1,2@a:1"}, {}, "two seeds have the same address"),
        ({"node_id": 1, "seeds": "a:1"}, {}, "'a:1' is not id@host:port"),
        ({"node_id": 1, "seeds": ",".join(f"{n}@a:{n}" for n in range(1, 8))}, {}, "7 seeds are more than 5"),
        ({"node_id": 9, "seeds": THREE}, {"FLUXD_CLUSTER_SECRET": SECRET}, "nodes outside the seed list cannot join"),
        ({"node_id": 1, "seeds": THREE}, {}, "needs a cluster_secret_file"),
        ({"node_id": 1, "cluster_secret_file": "/nonexistent"}, {}, "cluster_secret_file"),
        ({"node_id": 1, "log_level": "loud"}, {}, "log_level on the command line"),
        ({"node_id": 1, "config": "/nonexistent.toml"}, {}, "config file /nonexistent.toml"),
    ],
)
def test_refusals_are_one_clear_line(flags: dict[str, object], environ: dict[str, str], says: str) -> None:
    """Whatever is wrong is said in one line that names the key."""
    with pytest.raises(ConfigError) as caught:
        load(flags, environ)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_key_of_a_file_is_refused(tmp_path: Path) -> None:
    """A misspelt key is named, with its file."""
    file = tmp_path / "fluxd.toml"
    file.write_text("node_idd = 1\n")
    with pytest.raises(ConfigError, match=r"unknown key 'node_idd' in .*fluxd.toml"):
        load({"config": file}, {})


def test_service_links_are_not_settings() -> None:
    """Variables that Kubernetes sets for a service called fluxd are no unknown keys."""
    environ = {
        "FLUXD_SERVICE_HOST": "1",
        "FLUXD_PORT_9640_TCP": "1",
        "FLUXD_0_SERVICE_PORT_GRPC": "1",
        "FLUXD_PORT": "1",
    }
    assert load({"node_id": 1}, environ).node_id == 1


def test_secrets_are_not_shown() -> None:
    """Neither repr nor an error has the secret in it."""
    settings = load({"node_id": 1, "seeds": THREE, "cluster_secret": SECRET}, {})
    assert SECRET not in repr(settings)
    with pytest.raises(ConfigError) as caught:
        load({"node_id": 1, "seeds": THREE, "cluster_secret": SECRET[:-1]}, {})
    assert SECRET[:-1] not in str(caught.value)


def test_seeds_round_trip() -> None:
    """format_seeds is the inverse of parse_seeds."""
    assert format_seeds(parse_seeds(THREE)) == THREE
    assert parse_seeds(["1@a:1"]) == {1: "a:1"}


@pytest.mark.parametrize("address", ["", "a", "a:", "a:0", "a:65536", "a b:1", "::1:5", "a:x"])
def test_bad_addresses(address: str) -> None:
    """Only host:port is an address."""
    with pytest.raises(ValueError, match="is not host:port"):
        split_address(address)


def test_ipv6_address() -> None:
    """An IPv6 host stands in brackets."""
    assert split_address("[::1]:5") == ("[::1]", 5)


def test_settings_are_frozen() -> None:
    """Nobody changes settings after start."""
    settings = load({"node_id": 1}, {})
    assert isinstance(settings, Settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.node_id = 2
