"""What tests of running servers share: limits that hold on a loaded machine."""

HANG_S = 100  # what takes longer hangs
# Flags for a request that ends by itself in a minute at the earliest, and its parameters: what is to meet it under way
# may come late. The model has learned fewer positions; what it says is of no matter.
FAR = ("--context-length", "20000")
ENDLESS = {"max_new_tokens": 19_000, "ignore_eos": True, "temperature": 0}
