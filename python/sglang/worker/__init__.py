"""Where decisions meet the device: the loop that receives, plans, launches, commits and sends.

It knows the scheduler and the engine and nothing of text or HTTP; `launch.py` starts it in a process of its own.
Start with `loop.py`; `process.py` is the body of that process.
"""
