"""from sglang.srt.hf_transformers_utils import get_tokenizer: a model's tokenizer, as transformers has it."""

from typing import Any


def get_tokenizer(tokenizer_name: str, **kwargs: Any) -> Any:
    """tokenizer_name: a folder or a name on the hub. kwargs: what AutoTokenizer.from_pretrained takes."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_name, **kwargs)
