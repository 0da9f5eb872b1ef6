"""Work on pieces of tensors from several threads, within a bound on memory."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import jax

from mapjax.io._plan import Piece

_WAITING = 2  # pieces per worker: the next is there when one is done


def run(
    pieces: Sequence[Piece],
    work: Callable[[Piece], None],
    *,
    workers: int,
    memory: int,
    doubles: bool = False,
) -> None:
    """Do the work of every piece; while one reads, others compute and write.

    The costs of the pieces under way never add up to more than `memory`. The first error
    ends it: what has not begun is dropped. `doubles` allows JAX float64.
    """
    budget = _Budget(memory)
    x64, host = (
        jax.config.read("jax_enable_x64") or doubles,
        jax.local_devices(backend="cpu")[0],
    )

    def one(piece: Piece) -> None:
        try:
            # Both are settings of a thread.
            with jax.enable_x64(x64), jax.default_device(host):
                work(piece)
        finally:
            budget.give_back(piece.cost)

    with ThreadPoolExecutor(workers) as pool:
        running: set[Future[None]] = set()
        try:
            for piece in pieces:
                if len(running) == _WAITING * workers:
                    running = _first_done(running)
                budget.take(piece.cost)
                running.add(pool.submit(one, piece))
            while running:
                running = _first_done(running)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Budget:
    def __init__(self, total: int) -> None:
        self._total, self._used, self._changed = total, 0, threading.Condition()

    def take(self, cost: int) -> None:
        """Wait until so much is free; what costs more than everything goes alone."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._used or self._used + cost <= self._total
            )
            self._used += cost

    def give_back(self, cost: int) -> None:
        with self._changed:
            self._used -= cost
            self._changed.notify_all()


def _first_done(running: set[Future[None]]) -> set[Future[None]]:
    """Wait until one is done, and give the others; raises what the work raised."""
    done, others = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return others
