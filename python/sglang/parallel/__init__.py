"""Which ranks split a model, and how they exchange what they computed.

It knows ranks and sizes; it does not know layers (`layers` ask it for their share) or processes (`launch.py`).
Start with `group.py`.
"""
