"""The layers of a launch, one after another: all unrolled, or in a loop on the device."""

import nki.isa as nisa
import nki.language as nl

from .layer import LayerStart, Step, transformer_layer


def run_layers(x, operands, caches, layers, kinds):
    """The residual stream after a launch's layers.

    Args:
      x: [128, n, T], before them.
      operands: the `LayerOperands` of all layers.
      caches: `Caches`.
      layers: `LayerRange`.
      kinds: the launch's `Kind`s.
    """
    if layers.looped:
        return _looped_layers(x, operands, caches, layers, kinds)
    return _unrolled_layers(x, operands, caches, layers, kinds)


def _run(x, steps):
    """The residual stream after some layers, one after another."""
    start = LayerStart(steps[0])
    for index in range(len(steps)):
        following = None
        if index + 1 < len(steps):
            following = steps[index + 1]
        x, start = transformer_layer(x, steps[index], start, following)
    return x


def _unrolled_layers(x, operands, caches, layers, kinds):
    """The residual stream after the layers, each with instructions of its own."""
    for kind in kinds:
        if kind != None:
            kind.offsets = kind.tables.load(0)
    steps = []
    for index in range(layers.count):
        layer = layers.first + index
        kind = kinds[layers.kind(layer)]
        own = caches.layer(layer, layers)
        own.offsets = kind.offsets
        steps.append(Step(operands.layer(index), own, kind))
    return _run(x, steps)


def _looped_layers(x, operands, caches, layers, kinds):
    """The same with one copy of the instructions of a pattern of layers, which the device repeats.

    The layers after the last whole turn have instructions of their own.
    """
    size = layers.pattern_size()
    turns = layers.count // size
    if turns > 1 or layers.count == 1:
        _loop(x, operands, caches, layers, kinds, turns)
    else:
        turns = 0
    steps = []
    for index in range(turns * size, layers.count):
        layer = layers.first + index
        kind = kinds[layers.kind(layer)]
        own = caches.layer(layer, layers)
        # These offsets are relative to the first layer.
        own.offsets = kind.tables.load(own.number)
        own.number = 0
        steps.append(Step(operands.layer(layer), own, kind))
    if len(steps) == 0:
        return x
    return _run(x, steps)


def _loop(x, operands, caches, layers, kinds, turns):
    """Runs `turns` turns of the launch's pattern on x, in place."""
    size = layers.pattern_size()

    def body(turn):
        # Every turn executes the same instructions, so it takes the same buffers.
        for kind in kinds:
            if kind != None:
                ring = kind.context.ring
                ring.restart()
                masks = kind.masks
                masks.enter_loop()
        steps = []
        for index in range(size):
            layer = layers.first + index
            kind = kinds[layers.kind(layer)]
            number = layers.loop_layer(turn, index, size, turns)
            place = number
            if caches.by_kind:
                place = layers.loop_place(turn, index, size, turns)
            own = caches.layer_of_loop(place, layer, layers)
            own.offsets = kind.tables.load(place, looped=True)
            steps.append(Step(operands.layer(number, looped=True), own, kind, number=number))
        nisa.tensor_copy(dst=x, src=_run(x, steps))

    nl.fori_loop(0, turns, body)
    for kind in kinds:
        if kind != None:
            masks = kind.masks
            masks.leave_loop()
