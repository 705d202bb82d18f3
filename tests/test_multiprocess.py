"""Tensor parallelism over two real processes with jax.distributed."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import pytest
from absl.testing import absltest

WORKER = pathlib.Path(__file__).with_name("multiprocess_worker.py")
PROCESSES = 2


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.thorough
class MultiprocessTest(absltest.TestCase):
    def test_two_processes(self) -> None:
        address = f"127.0.0.1:{_free_port()}"
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        workers = [
            subprocess.Popen(
                [sys.executable, str(WORKER), address, str(PROCESSES), str(index)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(PROCESSES)
        ]
        try:
            # One that fails leaves the other waiting; only the wait is bounded, not the speed.
            outputs = [worker.communicate(timeout=300)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        for index, (worker, output) in enumerate(zip(workers, outputs, strict=True)):
            self.assertEqual(worker.returncode, 0, output)
            self.assertIn(f"process {index} of {PROCESSES} agrees", output)


if __name__ == "__main__":
    absltest.main()
