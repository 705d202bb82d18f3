"""Modeled speed of the Neuron kernels on Trainium2 and 3: `python -m jax_tkg.profile`.

A launch of a few layers is recorded in the simulator and scheduled by
`jax_tkg.simulator.timing.timeline`. What one more layer adds is the layer; what is left is the
launch's start and end. All figures are a model's predictions, none was measured on a device.
"""
