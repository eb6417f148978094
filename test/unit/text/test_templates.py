"""Chats as text: Jinja as transformers renders it, the JSON format style by style, bounds and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from text_kinds import save

from sglang.base.errors import ConfigError, FieldError
from sglang.text.jinja import JinjaTemplate
from sglang.text.templates import LAYOUTS, FileTemplate
from sglang.text.tokenizer import load

HELLO = [{"role": "user", "content": "hello"}]
CHAT = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": " How are you? "},
    {"role": "assistant", "content": "Fine,\n\nthanks."},
    {"role": "user", "content": "日本語 👋🏽?"},
]
TOOLS = [
    {"type": "function", "function": {"name": "now", "description": "The <time>", "parameters": {"type": "object"}}}
]
CALL = {"type": "function", "function": {"name": "now", "arguments": {"zone": "é"}}}
TOOL_CHAT = [
    *CHAT,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "12:00", "name": "now", "tool_call_id": "1"},
]

# In the manner of what models ship; each uses something that the others do not.
JINJAS = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "headers": """{{- bos_token }}
{%- set ns = namespace(turns=0) %}
{%- for message in messages %}
    {%- set ns.turns = ns.turns + 1 %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
{{- ns.turns }}""",
    "blocks": """{% if messages[0]['role'] == 'system' %}
    {% set rest = messages[1:] %}
  {% set system = messages[0]['content'] %}
{% else %}
    {% set rest = messages %}
{% endif %}
{% for m in rest %}
  {% if loop.index0 % 2 == 1 and m.role == 'user' %}
    {{ raise_exception('roles must alternate') }}
  {% endif %}
  {% if m['role'] == 'user' %}
[INST] {% if loop.first and system is defined %}<<SYS>>{{ system }}<</SYS>>{% endif %}{{ m['content'].strip() }} [/INST]
  {% else %}
{{ m['content'] ~ eos_token }}
  {% endif %}
{% endfor %}""",
    "macros": """{% macro turn(role, text='') %}<{{ role }}>{{ text }}</{{ role }}>{% endmacro %}
{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
{{ turn(m.role, m.content | upper) }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}
{%- generation %}end{% endgeneration %}{{ messages | length }}
{{- unknown is not defined }}{{ extra_word | default('-') }}""",
    "tools": """{%- if tools %}{{ tools | tojson }}
{% for tool in tools %}{{ tool | tojson(indent=2) }}{{ tool.function.parameters.items() | list }}{% endfor %}{% endif %}
{%- for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}{% for c in m.tool_calls %}
<call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</call>{% endfor %}
{% elif m.role == 'tool' %}<result name="{{ m.name }}">{{ m.content }}</result>
{% else %}{{ m.role }}: {{ m.content }}{% endif %}{% endfor %}{{ documents is none }}""",
}


@pytest.mark.parametrize("name", sorted(JINJAS))
@pytest.mark.parametrize("chat", [HELLO, CHAT, TOOL_CHAT], ids=["hello", "chat", "tools"])
@pytest.mark.parametrize("reply", [True, False])
def test_a_models_template_renders_as_transformers_renders_it(
    tmp_path: Path, name: str, chat: list[Any], reply: bool
) -> None:
    if chat is TOOL_CHAT and name != "tools":
        pytest.skip("no tools in this template")
    from transformers import AutoTokenizer

    folder = save(tmp_path, "byte_level", chat_template=JINJAS[name])
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tools = TOOLS if chat is TOOL_CHAT else None
    theirs = AutoTokenizer.from_pretrained(str(folder)).apply_chat_template(
        chat, tools=tools, tokenize=False, add_generation_prompt=reply, extra_word="W"
    )
    ours = load(str(folder)).render_chat(chat, tools=tools, add_generation_prompt=reply, extra={"extra_word": "W"})
    assert ours == theirs


def test_a_message_left_open_is_cut_as_transformers_cuts_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save(tmp_path, "byte_level", chat_template=JINJAS["headers"])
    (folder / "config.json").write_text('{"model_type": "llama"}')
    chat = [*CHAT, {"role": "assistant", "content": "Well, "}]
    theirs = AutoTokenizer.from_pretrained(str(folder)).apply_chat_template(
        chat, tokenize=False, continue_final_message=True
    )
    assert load(str(folder)).render_chat(chat, continue_final_message=True) == theirs


@pytest.mark.parametrize("where", ["string", "named", "named without default", "jinja file", "json file", "both"])
def test_a_models_template_is_found_wherever_it_is_kept(tmp_path: Path, where: str) -> None:
    own = "own {{ messages[0].content }}"
    named = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": own}]
    kept: dict[str, Any] = {
        "string": own,
        "named": named,
        "named without default": [{"name": "x", "template": own}],
        "both": "in the config, older",
    }
    folder = save(tmp_path, "byte_level", **({"chat_template": kept[where]} if where in kept else {}))
    if where in ("jinja file", "both"):
        (folder / "chat_template.jinja").write_text(own)
    if where == "json file":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": own}))
    assert load(str(folder)).render_chat(HELLO) == "own hello"


def test_a_template_can_name_the_special_tokens_and_a_client_cannot_rename_them() -> None:
    template = JinjaTemplate("{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}", {"bos_token": "<s>"})
    client = {"bos_token": "</s>", "messages": [], "add_generation_prompt": "x", "eos_token": "e"}
    assert template.render(HELLO, True, None, client) == "<s>eTrue"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{% for i in range(100001) %}{% endfor %}", "Range too big"),
    ],
)
def test_what_a_template_cannot_do_is_an_error_of_the_messages(source: str, says: str) -> None:
    with pytest.raises(FieldError, match=says) as caught:
        JinjaTemplate(source, {}).render(HELLO, True, None, {})
    assert caught.value.field == "messages"


def test_a_template_may_not_write_without_end() -> None:
    endless = "{% for i in range(10000) %}{% for j in range(10000) %}{{ messages[0].content }}{% endfor %}{% endfor %}"
    with pytest.raises(FieldError, match="more than 16777216 characters"):
        JinjaTemplate(endless, {}).render([{"role": "user", "content": "x" * 10_000}], True, None, {})


def test_a_template_may_not_run_without_end() -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(FieldError, match="took too long"):
        JinjaTemplate(endless, {}, render_s=0.05).render(HELLO, True, None, {})


def test_a_thousand_turns_are_rendered_well_within_the_limit() -> None:
    template = JinjaTemplate(JINJAS["headers"], {"bos_token": "<s>"})
    assert len(template.render(HELLO * 4096, True, None, {})) > 4096 * 50


A = {"name": "a", "system": "SYS", "user": "USER", "assistant": "BOT", "sep": "|", "sep2": "#", "stop_str": ["end"]}
TALK = [{"role": "user", "content": "u1"}, {"role": "assistant", "content": "a1"}, {"role": "user", "content": "u2"}]
STYLES = {
    "CHATML": "SYS\nsay|\nUSER\nu1|\nBOT\na1|\nUSER\nu2|\nBOT\n",
    "ADD_COLON_SINGLE": "SYS\nsay|USER: u1|BOT: a1|USER: u2|BOT:",
    "ADD_COLON_TWO": "SYS\nsay|USER: u1|BOT: a1#USER: u2|BOT:",
    "ADD_COLON_SPACE_SINGLE": "SYS\nsay|USER: u1|BOT: a1|USER: u2|BOT: ",
    "ADD_NEW_LINE_SINGLE": "SYS\nsay|USER\nu1|BOT\na1|USER\nu2|BOT\n",
    "NO_COLON_SINGLE": "SYS\nsayUSERu1|BOTa1|USERu2|BOT",
    "NO_COLON_TWO": "SYS\nsayUSERu1|BOTa1#USERu2|BOT",
    "LLAMA2": "[INST] <<SYS>>\nsay\n<</SYS>>\n\nu1 BOT a1 </s><s>USER u2 BOT",
    "CHATGLM": "SYS\nsay|[Round 0]|USER：u1|BOT：a1|[Round 1]|USER：u2|BOT：",
    "CHATGLM3": "SYS\nsayUSER\nu1BOT\na1USER\nu2BOT",
    "CHATINTERN": "SYS\nsay<s>USER:u1|\nBOT:a1#\n<s>USER:u2|\nBOT:",
    "DEEPSEEK_CHAT": "SYS\nsayUSER: u1|BOT: a1#USER: u2|BOT:",
    "DOLLY": "SYS\nsayUSER:\nu1|BOT:\na1#\n\nUSER:\nu2|BOT:\n",
    "FALCON_CHAT": "SYS\nsay|USER: u1|BOT: a1|USER: u2|BOT:",
    "METAMATH": "SYS\nsay|USER:\nu1|BOT: #a1USER:\nu2|BOT: #",
    "PHOENIX": "SYS\nsayUSER: <s>u1</s>BOT: <s>a1</s>USER: <s>u2</s>BOT: <s>",
    "ROBIN": "SYS\nsay|USER:\nu1|BOT:\na1|USER:\nu2|BOT:\n",
    "RWKV": "SYS\nsayUSER: u1\n\nBOT: a1\n\nUSER: u2\n\nBOT:",
}


@pytest.mark.parametrize("style", sorted(LAYOUTS))
def test_each_style_of_the_json_format(tmp_path: Path, style: str) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps({**A, "sep_style": style}))
    tokenizer = load(str(save(tmp_path / "model", "byte_level")), chat_template=str(file))
    assert tokenizer.render_chat([{"role": "system", "content": "say"}, *TALK]) == STYLES[style]
    assert tokenizer.chat_stop_strings == ("end",)


def test_the_json_formats_system_message_is_a_default() -> None:
    record = {**A, "sep_style": "CHATML", "system_message": "mine"}
    template = FileTemplate(record, "t")
    assert template.render(HELLO, False, None, {}) == "SYS\nmine|\nUSER\nhello|\n"
    developer = [{"role": "developer", "content": "yours"}, *HELLO]
    assert template.render(developer, False, None, {}) == "SYS\nyours|\nUSER\nhello|\n"
    bare = FileTemplate({**record, "system": "", "system_message": ""}, "t")
    assert bare.render(HELLO, False, None, {}) == "USER\nhello|\n"


def test_rwkv_folds_empty_lines_that_would_end_a_turn() -> None:
    template = FileTemplate({**A, "system": "", "sep_style": "RWKV"}, "t")
    assert template.render([{"role": "user", "content": "a\r\n\r\nb"}], False, None, {}) == "USER: a\nb\n\n"


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ([], "must be a JSON object"),
        ({k: v for k, v in A.items() if k != "user"} | {"sep_style": "CHATML"}, "lacks user"),
        ({**A, "sep_style": "NEW"}, "sep_style 'NEW' is not known; known: CHATML"),
        ({**A, "sep_style": "CHATML", "sep": 3}, "sep must be a string"),
        ({**A, "sep_style": "CHATML", "stop_str": [3]}, "stop_str must be a string or a list"),
        ({**A, "sep_style": ["CHATML"]}, "sep_style must be a string"),
    ],
)
def test_a_bad_json_file_is_refused_at_the_start(tmp_path: Path, record: Any, says: str) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="--chat-template") as caught:
        load(str(save(tmp_path / "model", "byte_level")), chat_template=str(file))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [("t.json", "{"), ("t.jinja", "{% if %}"), ("t.jinja", "{{ x"), ("t.txt", "")]
)
def test_a_file_that_is_no_template_is_refused_at_the_start(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError):
        load(str(save(tmp_path / "model", "byte_level")), chat_template=str(tmp_path / name))


def test_an_unknown_name_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nonsense: neither a file nor a built-in name; known:.*chatml.*llama-2,"):
        load(str(save(tmp_path, "byte_level")), chat_template="nonsense")


@pytest.mark.parametrize(
    ("name", "text", "stop"),
    [
        (
            "chatml",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
            "<|im_start|>assistant\n",
            ("<|endoftext|>", "<|im_end|>"),
        ),
        ("llama-2", "[INST] hello [/INST]", ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")),
        (
            "vicuna_v1.1",
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: hello ASSISTANT:",
            (),
        ),
        ("gemma-it", "<start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n", ()),
    ],
)
def test_a_built_in_template_asked_for_by_name(tmp_path: Path, name: str, text: str, stop: tuple[str, ...]) -> None:
    folder = save(tmp_path, "byte_level", chat_template="not this one")
    tokenizer = load(str(folder), chat_template=name)
    assert tokenizer.render_chat(HELLO) == text
    assert tokenizer.chat_stop_strings == stop


def test_a_jinja_file_asked_for_wins_over_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("mine {{ messages[0].content }}{{ eos_token }}")
    folder = save(tmp_path / "model", "byte_level", chat_template="not this one")
    assert load(str(folder), chat_template=str(tmp_path / "mine.jinja")).render_chat(HELLO) == "mine hello</s>"


@pytest.mark.parametrize("name", ["chatml", "gemma-it"])
@pytest.mark.parametrize(
    ("messages", "options", "field"),
    [
        ([{"role": "tool", "content": "x"}], {}, "messages[0].role"),
        ([{"role": None, "content": "x"}], {}, "messages[0].role"),
        ([{"content": "x"}], {}, "messages[0].role"),
        ([*HELLO, {"role": "assistant", "tool_calls": [CALL]}], {}, "messages[1].tool_calls"),
        (HELLO, {"tools": TOOLS}, "tools"),
        (HELLO, {"extra": {"enable_thinking": True}}, "chat_template_kwargs"),
    ],
)
def test_what_a_built_in_template_cannot_say_is_refused_not_dropped(
    tmp_path: Path, name: str, messages: list[Any], options: dict[str, Any], field: str
) -> None:
    tokenizer = load(str(save(tmp_path, "byte_level")), chat_template=name)
    with pytest.raises(FieldError) as caught:
        tokenizer.render_chat(messages, **options)
    assert caught.value.field == field
