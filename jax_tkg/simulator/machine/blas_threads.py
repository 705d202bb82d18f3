"""Limits NumPy's linear algebra to one thread during a simulation."""

import contextlib
import threading
from collections.abc import Iterator

import threadpoolctl

_limiting = threading.Lock()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps BLAS from splitting matrix products across threads.

    Each simulated core already is a thread, and its products are small. With more threads for each
    product, the threads wait for one another and a run takes several times as long.

    The limit applies to the whole process. When runs overlap, the first one sets and resets it; a
    later run would restore the limit of 1 that it found.
    """
    if not _limiting.acquire(blocking=False):
        yield
        return
    try:
        with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        _limiting.release()
