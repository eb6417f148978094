"""The parts models are made of: linear maps, norms, rotary embeddings.

They know tensors and how their weights are stored; they do not know what model they are part of (`models`).
Start with `linear.py`.
"""
