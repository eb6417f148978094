"""Text to ids and back: tokenizers, chat templates, incremental detokenisation with stop strings.

It knows a tokenizer's files; it does not know requests, HTTP (`server`) or the model.
Start with `tokenizer.py`; `detokenizer.py` turns ids into text as it becomes printable.
"""
