"""Where the features of a vector are in its tile on chip: on which partition, in which chunk.

A stage that takes features from HBM, or a tile of them out of a row on chip, asks here.
"""

from nki.language import NKIObject

from .limits import FREE_STRIDE_BYTES, PARTITIONS, RING_SLOT_BYTES


class FeatureOrder(NKIObject):
    """Where the features of a vector are in its tile [width, chunks].

    Attributes:
      width: partitions.
      groups: (first, count) of chunks, from chunk 0 on without gaps: feature
        first * width + p * count + c is on partition p of chunk first + c. So the features that a
        partition holds of a group are neighbors, and their rows of a weight one piece of HBM. None:
        feature c * width + p is on partition p of chunk c.
    """

    def __init__(self, width, groups=None):
        self.width = width
        self.groups = groups

    def group_of(self, chunk):
        """(first, count) of the group that has a chunk; without groups, of the chunk alone."""
        if self.groups == None:
            return (chunk, 1)
        found = None
        for group in self.groups:
            first, count = group
            if first <= chunk and chunk < first + count:
                found = group
        return found

    def equal_groups(self, first, count):
        """(begin, size, number): neighboring groups of equal size that are chunks first .. + count.

        Each is `number` groups of `size` chunks, from chunk `begin` on; `number` is at most 128.
        """
        found = []
        for group in self.groups:
            begin, size = group
            if begin >= first and begin + size <= first + count:
                last = len(found) - 1
                if last >= 0 and found[last][1] == size and found[last][2] < PARTITIONS:
                    found[last] = (found[last][0], size, found[last][2] + 1)
                else:
                    found.append((begin, size, 1))
        return found

    def blocks(self, first, count, most, unit=1):
        """Whole groups first .. first + count in blocks of similar size, each for one load.

        Args:
          first: the first chunk.
          count: chunks.
          most: chunks of a block at most.
          unit: what sizes of blocks are multiples of, where groups and `most` allow; not the last.

        Returns:
          (start, size) of each, counted from `first`: part of a group, or groups of equal size.
        """
        if self.groups == None:
            return even_blocks(0, count, most, unit)
        found = []
        for each in self.equal_groups(first, count):
            begin, size, number = each
            if size < most:
                for block in even_blocks(0, number, most // size):
                    found.append((begin - first + block[0] * size, block[1] * size))
            else:
                for group in range(number):
                    found.extend(even_blocks(begin - first + group * size, size, most, unit))
        return found

    def whole_groups(self, first, most):
        """How many chunks from `first` on, at most `most`, are whole groups."""
        if self.groups == None:
            return most
        found = 0
        for group in self.groups:
            end = group[0] + group[1] - first
            if group[0] >= first and end <= most:
                found = end
        return found

    def rows(self, matrix, first, count):
        """Rows of a matrix [n, m] in HBM, of the features of a block of chunks.

        Returns:
          [width, a, b, m], chunks in the order of a and b.
        """
        width = self.width
        if self.groups == None:
            by_chunk = matrix.reshape((matrix.shape[0] // width, width, matrix.shape[1]))
            chunks = by_chunk[first : first + count, :, :]
            return chunks.permute((1, 0, 2)).expand_dim(1)
        begin, size = self.group_of(first)
        number = max(1, count // size)
        of_groups = matrix[begin * width : (begin + number * size) * width, :]
        by_partition = of_groups.reshape_dim(0, (number, width, size)).permute((1, 0, 2, 3))
        if count < size:
            return by_partition[:, :, first - begin : first - begin + count, :]
        return by_partition

    def columns(self, tile, first, chunk):
        """Columns [n, width] of a tile [n, m]: those of the features of a chunk.

        The tile has the features of whole groups, from chunk `first` on.
        """
        width = self.width
        begin, size = self.group_of(chunk)
        start = (begin - first) * width
        of_group = tile[:, start : start + size * width]
        by_partition = of_group.reshape_dim(1, (width, size))
        return by_partition[:, :, chunk - begin]

    def columns_of_rows(self, tile, first, chunk):
        """Columns [n, r, width] of a tile [n, r, m], as `columns` has them of each row."""
        width = self.width
        begin, size = self.group_of(chunk)
        start = (begin - first) * width
        of_group = tile[:, :, start : start + size * width]
        by_partition = of_group.reshape_dim(2, (width, size))
        return by_partition[:, :, :, chunk - begin]


def even_blocks(first, count, most, unit=1):
    """(first, size) of as few blocks of similar size as hold `count` chunks, `most` in each.

    Sizes but the last are multiples of `unit`, if `most` is at least that.
    """
    if most < unit:
        unit = 1
    units = (count + unit - 1) // unit
    at_once = most // unit
    number = (units + at_once - 1) // at_once
    blocks = []
    begin = 0
    for index in range(number):
        end = min((index + 1) * units // number * unit, count)
        blocks.append((first + begin, end - begin))
        begin = end
    return blocks


def groups_of_a_load(first, count, row_bytes, column_bytes):
    """(first, size) of groups of chunks of a weight's rows, each as many as a load brings.

    The whole rows of such a group are one piece of HBM. Sizes but the last are even where they can
    be, for double rows.

    Args:
      first: the first chunk.
      count: chunks.
      row_bytes: of a row of the weight.
      column_bytes: bytes per element of the weights whose columns these features are.
    """
    most = max(1, min(RING_SLOT_BYTES // row_bytes, FREE_STRIDE_BYTES // column_bytes))
    return even_blocks(first, count, most, 2)
