"""One record per family. Importing this package fills the registry of `models.spec`."""

from sglang.models.families import llama, mistral, qwen2

__all__ = ["llama", "mistral", "qwen2"]
