"""Where the nodes and their clients are: on loopback, or each in a network namespace on a wire that can be cut.

With namespaces the whole run first goes into namespaces of its own (network, mounts, processes), so that nothing of it
outlives the run, however it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from itertools import permutations
from pathlib import Path

from tests.chaos.switch import Rule
from tests.integration.cluster import free_ports

_INSIDE = "FLUXD_CHAOS_INSIDE"
_PORT = 9640
_MTU = "16000"

Link = tuple[int, int]
"""(from, to), by node id; 0 stands for the clients."""

CLIENTS = 0


def why_not() -> str:
    """Why namespaces cannot be used here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian: iproute2, util-linux)"
    if not Path("/dev/net/tun").exists():
        return "the kernel has no /dev/net/tun"
    return ""


def is_inside() -> bool:
    """This process is in the run's own namespaces."""
    return _INSIDE in os.environ


def enter(arguments: list[str]) -> None:
    """Start this program again in namespaces of its own. Does not return."""
    environment = os.environ | {_INSIDE: "1"}
    command = [
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
        sys.executable, "-m", "tests.chaos", *arguments,
    ]  # fmt: skip
    os.execvpe("unshare", command, environment)


class Loopback:
    """All on 127.0.0.1: nothing can be cut."""

    can_be_cut = False

    def __init__(self, nodes: int) -> None:
        self.addresses = {number: f"127.0.0.1:{port}" for number, port in enumerate(free_ports(nodes), 1)}

    def prefix(self, node: int) -> list[str]:
        """What a node's command begins with."""
        return []

    def set_rules(self, name: str, rules: Mapping[Link, Rule]) -> None:
        """Nothing can be done."""
        raise NotImplementedError

    def clear(self, name: str) -> None:
        """Harmless."""

    def cut_links(self) -> frozenset[Link]:
        """Nothing is ever cut."""
        return frozenset()

    def close(self) -> dict[str, int]:
        """Packets by what became of them."""
        return {}


class Namespaces:
    """A network namespace for each node; the clients are where this process is.

    Several faults may set rules under different names: of those for one link the worst holds.
    """

    can_be_cut = True

    def __init__(self, nodes: int) -> None:
        assert is_inside()
        self._nodes = nodes
        self.addresses = {number: f"10.77.0.{number + 1}:{_PORT}" for number in range(1, nodes + 1)}
        self._rules: dict[str, Mapping[Link, Rule]] = {}
        self._lock = threading.Lock()
        devices = [f"chaos{number}" for number in range(nodes + 1)]
        self._switch = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.switch", *devices],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._expect("ready")
        Path("/run/netns").mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "none", "/run/netns")  # names of namespaces are files: not the machine's
        _run("ip", "link", "set", "lo", "up")
        self._bring_up(devices[CLIENTS], CLIENTS, [])
        for number in range(1, nodes + 1):
            _run("ip", "netns", "add", f"node{number}")
            _run("ip", "link", "set", devices[number], "netns", f"node{number}")
            _run(*self.prefix(number), "ip", "link", "set", "lo", "up")
            self._bring_up(devices[number], number, self.prefix(number))

    def _bring_up(self, device: str, number: int, prefix: list[str]) -> None:
        _run(*prefix, "ip", "address", "add", f"10.77.0.{number + 1}/24", "dev", device)
        _run(*prefix, "ip", "link", "set", device, "mtu", _MTU, "up")

    def prefix(self, node: int) -> list[str]:
        """What a node's command begins with; `ip` becomes the command itself, so its process id is the node's."""
        return ["ip", "netns", "exec", f"node{node}"]

    def set_rules(self, name: str, rules: Mapping[Link, Rule]) -> None:
        """Let links be bad from now on, until `clear` of the same name."""
        with self._lock:
            self._rules[name] = rules
            self._send()

    def clear(self, name: str) -> None:
        """Take one fault's rules back. Harmless when there are none."""
        with self._lock:
            if self._rules.pop(name, None) is not None:
                self._send()

    def cut_links(self) -> frozenset[Link]:
        """Links on which nothing arrives."""
        with self._lock:
            return frozenset(link for link, rule in self._effective().items() if rule.lost >= 1)

    def _effective(self) -> dict[Link, Rule]:
        links: dict[Link, Rule] = {}
        for rules in self._rules.values():
            for link, rule in rules.items():
                links[link] = Rule(*map(max, rule, links.get(link, Rule())))
        return links

    def _send(self) -> None:
        links = [[one + 1, other + 1, *rule] for (one, other), rule in self._effective().items()]
        assert self._switch.stdin is not None
        self._switch.stdin.write(json.dumps({"links": links}) + "\n")
        self._switch.stdin.flush()
        self._expect("ok")

    def _expect(self, word: str) -> None:
        assert self._switch.stdout is not None
        line = self._switch.stdout.readline().strip()
        if line != word:
            raise RuntimeError(f"the switch said {line!r}, not {word!r}")

    def close(self) -> dict[str, int]:
        """End the wire; packets by what became of them."""
        out, _ = self._switch.communicate(timeout=10)
        counts: dict[str, int] = json.loads(out)
        return counts


def between(ones: Iterable[int], others: Iterable[int], rule: Rule, *, one_way: bool = False) -> dict[Link, Rule]:
    """A rule for all links from some to others, and back unless `one_way`."""
    others = list(others)
    links = {(one, other): rule for one in ones for other in others if one != other}
    return links if one_way else links | {(other, one): rule for one, other in links}


def among(members: Iterable[int], rule: Rule) -> dict[Link, Rule]:
    """A rule for all links between members."""
    return dict.fromkeys(permutations(members, 2), rule)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
