"""How a linear map keeps its weight and multiplies by it: one weight format a file behind one small protocol.

It knows tensors and formats; it does not know what the map is for (`layers`) or where its tensors come from (`models`).
Start with `base.py`, then `dense.py`.
"""
