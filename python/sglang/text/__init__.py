"""Text to ids and back: tokenizers, chat templates, incremental detokenisation with stop strings and patterns.

It knows a tokenizer's files and the messages of a chat; it does not know requests or HTTP (`server`), nor the model.
Start with `tokenizer.py`; `pieces.py` says why text is a join of bytes, `detokenizer.py` makes a stream of that.
"""
