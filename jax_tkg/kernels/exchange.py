"""Swapping halves between the two physical cores of a logical core."""

import nki.isa as nisa


def exchange_tiles(tile, share, sizes):
    """Completes `tile` [P, total, T], of which this core has computed its share of the tiles."""
    if sizes.cores > 1 and share.sent > 0:
        other = 1 - sizes.core
        nisa.sendrecv(
            src=tile[:, share.send_first : share.send_first + share.sent, :],
            dst=tile[:, share.receive_first : share.receive_first + share.sent, :],
            send_to_rank=other,
            recv_from_rank=other,
            pipe_id=0,
        )


def swap(mine, theirs, sizes):
    """Receives the other core's `mine` into `theirs`, of the same shape and dtype."""
    other = 1 - sizes.core
    nisa.sendrecv(src=mine, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=0)
