"""Are a loop's tasks given what other threads have for them, each once and in order, by as few wake-ups as can be?"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from inspectbus.runtime.handover import Handover

PATIENCE_S = 10.0


def test_what_several_threads_bring_arrives_once_and_each_threads_in_its_order() -> None:
    threads, each = 4, 500

    async def take_all() -> list[tuple[int, int]]:
        handover, came = Handover(), asyncio.Queue[tuple[int, int]]()

        def bring(thread: int) -> None:
            for number in range(each):
                handover.bring(came.put_nowait, (thread, number))

        with ThreadPoolExecutor(threads) as pool:
            for thread in range(threads):
                pool.submit(bring, thread)
            return [await asyncio.wait_for(came.get(), PATIENCE_S) for _ in range(threads * each)]

    came = asyncio.run(take_all())

    for thread in range(threads):
        assert [number for of, number in came if of == thread] == list(range(each))


def test_all_that_comes_before_the_loop_looks_costs_one_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def bring_some() -> tuple[int, list[int]]:
        handover, loop = Handover(), asyncio.get_running_loop()
        wake_ups, came = 0, list[int]()
        wake_up = loop.call_soon_threadsafe

        def counted(*how: object) -> object:
            nonlocal wake_ups
            wake_ups += 1
            return wake_up(*how)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)

        def bring() -> None:
            for number in range(10):
                handover.bring(came.append, number)

        brings = threading.Thread(target=bring)
        brings.start()
        brings.join(PATIENCE_S)  # the loop cannot look meanwhile
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return wake_ups, came

    assert asyncio.run(bring_some()) == (1, list(range(10)))


def test_a_future_of_another_thread_is_awaited_with_its_result_or_its_error() -> None:
    async def wait_for(future: Future[int]) -> int:
        waiting = asyncio.create_task(Handover().result(future))
        await asyncio.sleep(0)  # it waits now
        await asyncio.to_thread(future.set_result, 7)
        return await asyncio.wait_for(waiting, PATIENCE_S)

    assert asyncio.run(wait_for(Future())) == 7

    failed: Future[int] = Future()
    failed.set_exception(ZeroDivisionError())

    async def wait_in_vain() -> int:
        return await Handover().result(failed)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(wait_in_vain())


def test_what_comes_when_the_loop_has_closed_is_nobodys_and_no_error() -> None:
    async def made() -> Handover:
        return Handover()

    handover, came = asyncio.run(made()), list[int]()

    handover.bring(came.append, 1)

    assert came == []
