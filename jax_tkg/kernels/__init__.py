"""The megakernel for AWS Neuron: the stages of `jax_tkg.reference`, under the same names, in NKI.

These modules import `nki`, and each other, but no other part of the package. `limits`, which holds
the constants, does not import `nki` either. Where the real `nki` is absent,
`jax_tkg.simulator.install()` provides it.

Everything on chip is transposed: features on the 128 partitions, tokens along the free dimension.
So the result of each matrix product is the next product's moving operand, and nothing is transposed
between stages. An activation of n features is a tile [128, n / 128, T]; `feature_order` says which
feature is where. Heads are tiles [rows, heads, chunks, T]: a head is one chunk of d rows, or two of
d/2 if d is more than 128.

On a logical core of two physical cores, both run the same program. Each core holds half of the
residual stream's features. A product of the residual stream is the sum of both cores' products
(`linear_of_shares`); a product that becomes part of the residual stream gives each core its half
(`residual_product`). Each core attends half of the sequences, or half of the slots of each, and the
cores swap the results (`exchange`).
"""
