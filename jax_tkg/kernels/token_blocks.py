"""New tokens as rows of tiles: blocks of whole sequences, whose tokens take a partition each."""

from nki.language import NKIObject

from .divisions import sequence_blocks, sequences_of_a_core


class TokenBlock(NKIObject):
    """Sequences first .. first + count, whose new tokens are the rows of one tile.

    Attributes:
      first_token: of the launch's T tokens.
      tokens: how many, at most 128.
    """

    def __init__(self, first, count, sizes):
        self.first = first
        self.count = count
        self.first_token = first * sizes.S
        self.tokens = count * sizes.S


def token_blocks(sizes, core):
    """The `TokenBlock`s of all sequences, in their order."""
    blocks = []
    for each in sequence_blocks(sizes.B, sizes.S, core.count):
        blocks.append(TokenBlock(each[0], each[1], sizes))
    return blocks


def attended_blocks(sizes, core):
    """Those of the `token_blocks` that have sequences that this core attends."""
    first, count = sequence_share(sizes, core)
    blocks = []
    for block in token_blocks(sizes, core):
        if block.first < first + count and block.first + block.count > first:
            blocks.append(block)
    return blocks


def sequence_share(sizes, core):
    """(first, count) of the sequences that this core attends."""
    count = sequences_of_a_core(sizes.B, core.count)
    if count < sizes.B:
        return (core.index * count, count)
    return (0, count)
