"""The simulated loop, where a whole run would show a fault of its own only now and then."""

from __future__ import annotations

from tests.cluster.loop import SimLoop, generator_hooks
from tests.simulation.clock import Simulator


def test_what_came_during_a_pause_comes_before_what_comes_at_its_end() -> None:
    """A cut that is healed at the moment in which a process goes on must not let later bytes overtake earlier ones."""
    simulator, ran, defects = Simulator(), list[str](), list[str]()
    loop = SimLoop(  # type: ignore[abstract]  # no sockets, no signals
        simulator, on_event=lambda: None, on_defect=lambda what, _: defects.append(what), on_log=lambda *_: None
    )

    def send(name: str) -> None:
        loop.call_soon(ran.append, name)

    def heal() -> None:
        send("held by a cut")  # asked for before the process goes on, in the same moment
        loop.resume()
        send("later")

    loop.pause(10.0)
    simulator.at(1.0, lambda: send("first"))
    simulator.at(2.0, lambda: send("second"))
    simulator.at(3.0, heal)
    with generator_hooks():  # afterwards no loop is taken for a running one
        while simulator.step():
            pass
    assert ran == ["first", "second", "held by a cut", "later"]
    assert not defects
