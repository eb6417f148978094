"""Attention over the paged KV pool, one backend a file behind one small protocol.

It knows cells, pages and rows of a step; it does not know models or requests.
Start with `base.py`; `torch_native.py` runs anywhere and is what all others are tested against.
"""
