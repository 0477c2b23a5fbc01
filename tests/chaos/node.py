"""python -m tests.chaos.node: `fluxd serve`, on a filesystem that forgets what was not synced when the power is cut.

Takes its settings from FLUXD_… variables. Everything but the filesystem is what `fluxd serve` runs.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from fluxd import config, observability, tuning
from fluxd.broker.founding import StartError
from fluxd.machine import Machine
from fluxd.node import Node
from fluxd.reactor import AsyncReactor
from tests.chaos.filesystem import PowerCutFileSystem


async def serve(settings: config.Settings) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    reactor = AsyncReactor(loop)
    try:
        node = Node(settings, reactor, Machine(filesystem=PowerCutFileSystem))
        loop.add_signal_handler(signal.SIGTERM, node.stop)
        tuning.freeze_what_is_loaded()
        await node.run()
    finally:
        reactor.close()


def main() -> int:
    """Exit code 0: stopped as asked."""
    settings = config.load({})
    observability.configure(settings.log_level, settings.log_format, node_id=settings.node_id)
    tuning.raise_file_limit()
    tuning.tune_allocator()
    try:
        with asyncio.Runner(loop_factory=tuning.loop_factory()) as runner:
            runner.run(serve(settings))
    except StartError as error:
        observability.get_logger().error("node_gave_up", why=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
