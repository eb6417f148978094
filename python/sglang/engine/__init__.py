"""Runs plans on a device: weights, KV pool, the step's tensors, the sampler.

It knows plans, models and memory; it does not know requests, queues or text (`schedule`, `text`).
Start with `engine.py`.
"""
