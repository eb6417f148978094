"""Errors that carry enough for the door to answer well."""


class FieldError(ValueError):
    """A value a caller sent is not acceptable.

    `field` is the path of the offending value as the caller wrote it (`sampling_params.top_p`), the message says the
    allowed range and the value got. HTTP rooms answer `status` (400 unless said otherwise).
    """

    def __init__(self, field: str, message: str, status: int = 400):
        super().__init__(message)
        self.field = field
        self.status = status


class Overloaded(RuntimeError):
    """The queue is full; the caller may come back after `retry_after_s` seconds (HTTP 503)."""

    def __init__(self, message: str, retry_after_s: int = 1):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConfigError(ValueError):
    """An impossible setting at start-up. One line that names the flag and a value that works; exit code 2."""


class NoRoom(ConfigError):
    """At start-up memory is too small; `free` bytes there were. `sglang.plan_memory` knows what flags would help."""

    def __init__(self, message: str, free: float):
        super().__init__(message)
        self.free = free


class WorkerDied(RuntimeError):
    """The worker process is gone; the message is its first cause."""
