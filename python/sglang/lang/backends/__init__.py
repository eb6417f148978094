"""Who answers a program: one file per provider behind the interface of `base.py`.

They know their provider's API and the state they are shown; not how programs run (`lang/interpreter.py`).
Start with `base.py`.
"""
