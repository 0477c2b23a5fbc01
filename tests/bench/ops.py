"""`make bench-ops`: all measurements of operations, one after another; a part that fails does not spoil the others.

    python -m tests.bench.ops [--quick] [--only failover,recovery,retention,flood] [--json FILE]

See failover.py, recovery.py, retention.py and flood.py for what is measured and for more options.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from tests.bench import failover, flood, recovery, retention
from tests.bench.operations import Part, run_parts

_SUITES: dict[str, tuple[Callable[[argparse.Namespace], list[Part]], argparse.ArgumentParser, Sequence[str]]] = {
    "failover": (failover.parts, failover.make_parser(), ("--rounds", "3", "--many", "30")),
    "recovery": (recovery.parts, recovery.make_parser(), ("--gb", "0.3", "--kills", "1")),
    "retention": (retention.parts, retention.make_parser(), ("--seconds", "15", "--rounds", "1", "--compare", "5")),
    "flood": (flood.parts, flood.make_parser(), ("--seconds", "5")),
}
"""Parts, options, and what --quick gives them."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ops", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small and few: for a look, not for a figure")
    parser.add_argument("--only", default=",".join(_SUITES), help="with commas [%(default)s]")
    parser.add_argument("--drop-caches", action="store_true", help="of recovery: see there")

    def parts(arguments: argparse.Namespace) -> list[Part]:
        out: list[Part] = []
        for name in arguments.only.split(","):
            make_parts, own, quick = _SUITES[name]
            given = own.parse_args(quick if arguments.quick else ())
            if name == "recovery":
                given.drop_caches = arguments.drop_caches
            out += make_parts(given)
        return out

    run_parts(parser, parts)


if __name__ == "__main__":
    main()
