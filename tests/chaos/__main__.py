"""python -m tests.chaos --minutes N --seed S: break a real cluster on purpose and judge what its clients saw."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.chaos import network
from tests.chaos.plan import Kind
from tests.chaos.report import report
from tests.chaos.run import Options, Run


def main() -> int:
    """Exit code 0: valid. 1: a promise was broken, or the run proves nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of faults")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--directory", type=Path, default=Path("chaos-data"), help="data, logs, histories; emptied")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces: nothing is cut or delayed")
    parser.add_argument("--only", type=Kind, nargs="+", default=[], help=f"of {', '.join(Kind)}")
    arguments = parser.parse_args()
    why_not = "it was asked for" if arguments.loopback else network.why_not()
    if not why_not and not network.is_inside():
        network.enter([*sys.argv[1:], "--seed", str(arguments.seed)])
    options = Options(
        arguments.seed, arguments.minutes * 60, arguments.directory.absolute(), partitions=arguments.partitions,
        only=frozenset(arguments.only),
    )  # fmt: skip
    if why_not:
        print(f"on loopback, without faults of the network: {why_not}", flush=True)
    wire = network.Loopback(options.nodes) if why_not else network.Namespaces(options.nodes)
    result = Run(options, wire).run()
    (options.directory / "result.json").write_text(result.to_json())
    print(report(result))
    return 0 if result.valid else 1


if __name__ == "__main__":
    sys.exit(main())
