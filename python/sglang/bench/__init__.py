"""What measuring a server takes: an HTTP client that costs little, request shapes, datasets, figures, plots.

It knows HTTP and a tokenizer, never the inside of a server: any server with these APIs can be measured, ours or not.
Who runs it is `bench_serving.py` beside the rooms. Start with `client.py`, then `apis.py`.
"""
