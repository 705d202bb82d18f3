"""The megakernel for AWS Neuron: the stages of `jax_tkg.reference`, under the same names, in NKI.

These modules import `nki` and nothing else of the package. Where the real `nki` is absent,
`jax_tkg.simulator.install()` provides it.

Everything on chip is kept transposed: features on the 128 partitions, tokens along the free
dimension, so that each matrix product's result is the next one's moving operand and nothing is
transposed between stages. An activation of n features is a tile [128, n / 128, T], feature
c * 128 + p in partition p of chunk c; heads are tiles [d, heads, T].

On a logical core of two physical cores both run the same program. Each holds half of the residual
stream's features. A product of it is the sum of what both have (`linear_of_shares`); a product that
makes it gives each core its half. Of the context each attends half, and they swap (`exchange`).
"""
