"""What a model is: one decoder that executes a spec, a record per family, and the way from files to parameters.

It knows layers and tensors; it does not know requests (`schedule`), steps (`engine`) or sampling.
Start with `spec.py`, then one of `families/`, then `decoder.py`.
"""
