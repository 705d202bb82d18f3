"""A model's arrays on its devices: in which form, and how they are split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jax_tkg.bits import as_bits, weights_as_bits
from jax_tkg.models.config import ModelConfig
from jax_tkg.models.packing import ModelParameters
from jax_tkg.models.placing import put
from jax_tkg.models.vocabulary import Vocabulary
from jax_tkg.sharding import TransformerTkgSpecs, partition_specs
from jax_tkg.weights import TransformerWeights, unstack_layers

TENSOR_AXIS = "tp"
"""Name of the mesh axis over which the model is split."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlacedParameters:
    """The arrays of a model on its devices. A pytree.

    Attributes:
      layers: weights of the layers.
      vocabulary: embedding and head.
      final_gamma: [1, H] of the last RMSNorm.
    """

    layers: TransformerWeights
    vocabulary: Vocabulary
    final_gamma: jax.Array


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a model's arrays lie, and in which form.

    Attributes:
      mesh: whose axis `TENSOR_AXIS` splits the model, or None for one device.
      platform: of its devices, such as "cpu".
      stacked: whether weights and caches have a layer axis or are lists of arrays.
      specs: how the arrays are split over the mesh.
      vocabulary_size: tokens of the vocabulary, without padding for the ranks.
    """

    mesh: jax.sharding.Mesh | None
    platform: str
    stacked: bool
    specs: TransformerTkgSpecs
    vocabulary_size: int

    @property
    def on_cpu(self) -> bool:
        """Whether low precision is held as `jax_tkg.bits.Bits`."""
        return self.platform == "cpu"

    def sharding(self, spec: Any) -> jax.sharding.Sharding | None:
        """The sharding of an array with this PartitionSpec, or None without a mesh."""
        return None if self.mesh is None else jax.sharding.NamedSharding(self.mesh, spec)

    def cached(self, caches: tuple[Any, Any]) -> tuple[Any, Any]:
        """Caches in the form that the devices take."""
        return jax.tree.map(as_bits, caches) if self.on_cpu else caches

    def placed(self, parameters: ModelParameters) -> PlacedParameters:
        """The parameters on the devices; of an outline's shapes, the shapes and shardings there."""
        if isinstance(parameters.head, jax.ShapeDtypeStruct):
            arranged = jax.eval_shape(self._arranged, parameters)
            return self._with_shardings(arranged, _described)
        return self._with_shardings(self._arranged(parameters), put)

    def _arranged(self, parameters: ModelParameters) -> PlacedParameters:
        """The parameters in the form in which the devices read them fastest."""
        layers = parameters.layers if self.stacked else unstack_layers(parameters.layers)
        layers = weights_as_bits(layers) if self.on_cpu else layers
        head, embedding = parameters.head, parameters.embedding
        # Where the head is split the embedding is not, and Trainium gathers rows, not columns.
        if embedding is None and (self.mesh is not None or self.platform == "neuron"):
            rows = head[:, : self.vocabulary_size].T
            embedding = np.ascontiguousarray(rows) if isinstance(head, np.ndarray) else rows
        vocabulary = Vocabulary(as_bits(head) if self.on_cpu else head, embedding)
        return PlacedParameters(layers, vocabulary, parameters.final_gamma)

    def _with_shardings(
        self, parameters: PlacedParameters, put: Callable[[Any, Any], Any]
    ) -> PlacedParameters:
        """Weights split as the primitive wants them.

        Args:
          parameters: as `_arranged` makes them.
          put: puts an array, or a list of arrays, where the sharding says; None is one device.
        """
        mesh = self.mesh
        if mesh is None:
            return put(parameters, None)

        def place(array: Any, spec: Any) -> Any:
            if isinstance(spec, list):
                # Layers that differ have a spec each.
                return list(map(place, array, spec))
            return put(array, jax.sharding.NamedSharding(mesh, spec))

        whole = jax.sharding.PartitionSpec()
        layers = {
            # A list's arrays have the same sharding each, which stands for all of them.
            name: None if arrays is None else place(arrays, getattr(self.specs, name))
            for name, arrays in parameters.layers.arguments().items()
        }
        head, embedding = parameters.vocabulary.head, parameters.vocabulary.embedding
        return PlacedParameters(
            layers=TransformerWeights(**layers),
            vocabulary=Vocabulary(place(head, self.specs.W_head), place(embedding, whole)),
            final_gamma=place(parameters.final_gamma, whole),
        )


def placement(
    config: ModelConfig, mesh: jax.sharding.Mesh | None, stacked: bool | None
) -> Placement:
    """The placement of a model.

    Args:
      config: of the model.
      mesh: its devices, or None for one.
      stacked: whether weights and caches have a layer axis; None: on CPUs, if layers are alike.

    Raises:
      ValueError: layers that differ are to be stacked.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if stacked and config.dense_layers:
        raise ValueError(
            "stacked: expected False or None, because only some layers of the model have "
            "experts, got True"
        )
    alike = not config.dense_layers
    if stacked is None:
        stacked = device.platform == "cpu" and alike
    specs = partition_specs(
        TENSOR_AXIS,
        stacked=stacked,
        expert_split=None if config.experts is None else "intermediate",
        expert_layers=None
        if alike
        else [config.experts_of(n) is not None for n in range(config.num_layers)],
    )
    return Placement(mesh, device.platform, stacked, specs, config.vocabulary_size)


def _described(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """Shapes with a sharding, where `put` would put arrays."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
