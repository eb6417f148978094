"""Roles from a tokenizer's Jinja template: what a program writes is what the template would have."""

import json
from pathlib import Path

import packers
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sglang.lang.backends.jinja import from_jinja, template_of_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_DEFAULT = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}\n\n{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
CHATS = [
    [("user", "Hi"), ("assistant", "Ho"), ("user", "Well")],
    [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho")],
]


@pytest.mark.parametrize("source", [CHATML, WITH_DEFAULT, HEADERS, NO_SYSTEM, INST])
def test_a_program_writes_what_the_template_writes(source: str) -> None:
    template = from_jinja(source, "</s>")
    assert template is not None
    render = ImmutableSandboxedEnvironment().from_string(source).render
    for chat in CHATS:
        messages = [{"role": role, "content": content} for role, content in chat]
        if source is NO_SYSTEM and chat[0][0] == "system":
            continue
        assert template.get_prompt(template.with_system(messages)) == render(
            messages=messages, bos_token="", eos_token="</s>"
        )
    assert template.stop_str[0] in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",  # no message as it is
        "{% if",  # no template
        "{{ raise_exception('never') }}",
        "{{ messages | length }}{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}",  # not turn by turn
        "{% for m in messages %}{% if m.role == 'system' %}{% set sys = m.content %}{% else %}"
        "[{{ m.content }}]{% endif %}{% endfor %}",  # a system message that is not there
    ],
)
def test_what_cannot_be_told_apart_into_roles_is_left_to_the_models_path(source: str) -> None:
    assert from_jinja(source) is None


def test_where_the_template_is_looked_for(tmp_path: Path) -> None:
    assert template_of_model(None, str(tmp_path / "llama-3-instruct")) is None
    config = {"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": INST}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": {"content": "<end>"}}))
    found = template_of_model(None, str(tmp_path))
    assert found is not None and found.stop_str == ("<end>",)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    found = template_of_model(None, str(tmp_path))
    assert found is not None and found.stop_str == ("<|im_end|>",)
    keys = {"general.architecture": "llama", "tokenizer.chat_template": INST, "tokenizer.ggml.tokens": ["a", "<eot>"]}
    (tmp_path / "m.gguf").write_bytes(packers.gguf({**keys, "tokenizer.ggml.eos_token_id": 1}, {}))
    found = template_of_model(None, str(tmp_path / "m.gguf"))
    assert found is not None and found.stop_str == ("<eot>",)
    named = template_of_model("vicuna_v1.1", str(tmp_path))
    assert named is not None and named.name == "vicuna_v1.1"
