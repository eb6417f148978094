"""Prompt programs: gen, select, fork, roles, and the backends that answer them.

It knows a backend's small interface (`backends/base.py`); it does not know the runtime behind it, nor torch.
Start with `ir.py` (what a program consists of), then `interpreter.py` (how it runs) and `program.py` (who runs it).
"""
