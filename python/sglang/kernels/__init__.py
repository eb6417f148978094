"""Kernels in Triton for CUDA devices, one job a file, and the staging of what the host sends along with a step.

They know tensors and sizes; they do not know layers, steps or models (`attention`, `layers`, `engine` launch them).
Import them only where a tensor is on a CUDA device: Triton is not installed everywhere. Start with `attention.py`.
"""
