"""Words every room may say: configuration, limits, sampling parameters, messages, plans, links.

It knows no torch, no HTTP and no model; it imports nothing else of ours.
Start with `messages.py` (what travels between processes) and `plan.py` (what scheduler and engine say to each other).
"""
