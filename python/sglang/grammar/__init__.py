"""Regex, JSON schema, choices and grammars -> what tokens may come next, and what bytes must.

It knows a vocabulary as bytes; it does not know models, requests or tokenizers (`text` does; `jump.py` is handed an
encode function), nor torch: an automaton is two plain arrays (`rules.Machine`), which a device may follow by itself.
Start with `rules.py` (the words), then `automaton.py` and `vocab.py`; `schema.py` and `reader.py` read JSON schemas.
`search.py` goes the other way: it finds patterns in text that comes.
"""
