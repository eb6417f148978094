"""HTTP: native and OpenAI endpoints, authentication, event streams, metrics; and the front that owns every request.

It knows messages and text; it does not know the scheduler (`schedule`), the model (`engine`) or which process runs
what (`launch.py`).
Start with `front.py` (a request becomes a stream of outputs), then `native.py`, the smaller of the two APIs.
"""
