"""A bounded buffer that is fair to those who wait."""

from __future__ import annotations

import asyncio

from fluxlog.aio.room import Room


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_those_who_wait_come_in_the_order_in_which_they_asked() -> None:
    async def scene() -> None:
        room, order = Room(10), list[str]()

        async def take(name: str, size: int) -> None:
            await room.take(size)
            order.append(name)

        assert room.try_take(8)
        tasks = [asyncio.ensure_future(take("large", 9)), asyncio.ensure_future(take("small", 1))]
        await _settle()
        assert not room.try_take(1), "nobody overtakes"
        assert order == []
        room.give(8)
        await _settle()
        assert order == ["large", "small"]
        assert room.used == 10
        await asyncio.gather(*tasks)

    asyncio.run(scene())


def test_what_is_larger_than_all_of_it_is_let_in_alone() -> None:
    room = Room(10)
    assert room.try_take(50)
    assert not room.try_take(1)
    room.give(50)
    assert room.try_take(1)


def test_who_is_cancelled_while_waiting_leaves_nothing_taken() -> None:
    async def scene() -> None:
        room = Room(10)
        assert room.try_take(10)
        waiting = asyncio.ensure_future(room.take(10))
        behind = asyncio.ensure_future(room.take(1))
        await _settle()
        waiting.cancel()
        room.give(10)
        await asyncio.gather(waiting, behind, return_exceptions=True)
        assert room.used == 1

    asyncio.run(scene())


def test_who_is_cancelled_just_when_room_was_given_hands_it_on() -> None:
    async def scene() -> None:
        room = Room(10)
        assert room.try_take(10)
        first, second = asyncio.ensure_future(room.take(10)), asyncio.ensure_future(room.take(10))
        await _settle()
        room.give(10)
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert second.done()
        assert not second.cancelled()
        assert room.used == 10

    asyncio.run(scene())
