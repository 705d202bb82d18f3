"""NumPy's linear algebra on one thread while kernels are simulated."""

import contextlib
import threading
from collections.abc import Iterator

import threadpoolctl

_limiting = threading.Lock()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps BLAS from dividing products over threads.

    The cores of a run are threads already, and their products are small: more threads for each
    only wait for one another, and a run takes several times as long.

    The limit holds for the process. Of runs that overlap the first sets it and takes it back, for
    a later one would remember the limit as what was there before.
    """
    if not _limiting.acquire(blocking=False):
        yield
        return
    try:
        with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        _limiting.release()
