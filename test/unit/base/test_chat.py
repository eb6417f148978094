"""The table of role templates: whole prompts as the models' authors published them, and the choice by path."""

import pytest

from sglang.base import chat
from sglang.base.chat import ChatTemplate, get_chat_template, get_chat_template_by_model_path

CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
]
L3 = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
R = "<|START_OF_TURN_TOKEN|>"
WHOLE = {
    "default": "SYSTEM:S\nUSER:U1\nASSISTANT:A1\nUSER:U2\nASSISTANT:",
    "claude": "S\n\nHuman: U1\n\nAssistant:A1\n\nHuman: U2\n\nAssistant:",
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n"
    ),
    "vicuna_v1.1": "S USER:U1 ASSISTANT:A1</s>USER:U2 ASSISTANT:",
    "yi-1.5": (
        "S<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama-2-chat": "[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST]A1 </s><s>[INST] U2 [/INST]",
    "llama-3-instruct": (
        L3.format("system", "S") + L3.format("user", "U1") + L3.format("assistant", "A1") + L3.format("user", "U2")
        + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "yi-vl": "S\n\n### Human:U1\n### Assistant:A1\n### Human:U2\n### Assistant:",
    "gemma-it": (
        "S<start_of_turn>user\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
        "<start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\n"
    ),
    "dbrx-instruct": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>"
        "\n<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n"
    ),
    "c4ai-command-r": (
        f"{R}<|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|>{R}<|USER_TOKEN|>U1<|END_OF_TURN_TOKEN|>"
        f"{R}<|CHATBOT_TOKEN|>A1<|END_OF_TURN_TOKEN|>{R}<|USER_TOKEN|>U2<|END_OF_TURN_TOKEN|>{R}<|CHATBOT_TOKEN|>"
    ),
    "llama-4": (
        "<|header_start|>system<|header_end|>\n\nS<|eot|><|header_start|>user<|header_end|>\n\nU1<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\nA1<|eot|><|header_start|>user<|header_end|>\n\nU2<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    ),
    "granite-3-instruct": (
        "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U1<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>A1<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>U2<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
    ),
    "deepseek-v3": "S<｜User｜>U1<｜Assistant｜>A1<｜end▁of▁sentence｜><｜User｜>U2<｜Assistant｜>",
    "mistral": "[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]U1[/INST]A1</s>[INST]U2[/INST]",
    "gemma-4-it": (
        "<|turn>system\nS<turn|>\n<|turn>user\nU1<turn|>\n<|turn>model\nA1<turn|>\n<|turn>user\nU2<turn|>\n"
        "<|turn>model\n"
    ),
    "janus": "S\n\nUser: U1\n\nAssistant:A1<｜end▁of▁sentence｜>User: U2\n\nAssistant:",
    "janus-pro": "S\n\n<|User|>: U1\n\n<|Assistant|>:A1<｜end▁of▁sentence｜><|User|>: U2\n\n<|Assistant|>:",
    "glm-4v": "<|system|>\nS<|user|>\nU1<|assistant|>\nA1<|user|>\nU2<|assistant|>\n",
}  # fmt: skip
LIKE_CHATML = (
    "qwen", "qwen2-vl", "chatml-llava", "internlm2-chat", "internvl-2-5", "interns1", "minicpmv", "minicpmo",
)  # fmt: skip
WHOLE |= dict.fromkeys(LIKE_CHATML, WHOLE["chatml"]) | {"llama-3-instruct-llava": WHOLE["llama-3-instruct"]}


@pytest.mark.parametrize("name", chat.chat_template_names())
def test_a_chat_looks_as_its_model_was_trained_on(name: str) -> None:
    template = get_chat_template(name)
    opened = template.get_prompt(CHAT) + template.get_prefix_and_suffix("assistant", CHAT)[0]
    assert opened == WHOLE[name]


@pytest.mark.parametrize(
    ("name", "system", "stop", "image"),
    [
        ("default", None, (), "<image>"),
        ("chatml", None, ("<|im_end|>",), "<image>"),
        ("qwen", "You are a helpful assistant.", ("<|im_end|>",), "<image>"),
        ("chatml-llava", "You are a helpful assistant.", ("<|im_end|>",), "<image>\n"),
        ("llama-2-chat", None, (), "<image>"),
        ("llama-3-instruct", None, ("<|eot_id|>",), "<|image|>"),
        ("yi-1.5", None, ("<|im_end|>",), "<image>"),
        ("gemma-it", None, (), "<image>"),
        ("c4ai-command-r", None, (), "<image>"),
    ],
)
def test_default_system_message_stop_strings_and_image_token(
    name: str, system: str | None, stop: tuple[str, ...], image: str
) -> None:
    template = get_chat_template(name)
    assert (template.default_system_prompt, template.stop_str, template.image_token) == (system, stop, image)


@pytest.mark.parametrize(
    ("name", "begins", "ends"),
    [
        ("vicuna_v1.1", "A chat between a curious user", "to the user's questions."),
        ("yi-vl", "This is a chat between an inquisitive human and an AI assistant.", "详细的和礼貌的回答。"),
        ("dbrx-instruct", "You are DBRX, created by Databricks.", "PERTINENT TO THE USER'S QUERY."),
    ],
)
def test_models_bring_their_own_system_message(name: str, begins: str, ends: str) -> None:
    text = get_chat_template(name).default_system_prompt or ""
    assert text.startswith(begins) and text.endswith(ends)


def test_a_system_message_of_none_is_the_default_one_or_nothing() -> None:
    messages = [{"role": "system", "content": None}, {"role": "user", "content": "U"}]
    assert (
        get_chat_template("qwen")
        .get_prompt(messages)
        .startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    )
    assert get_chat_template("chatml").get_prompt(messages) == "<|im_start|>user\nU<|im_end|>\n"


def test_the_default_system_message_opens_a_chat_that_has_none() -> None:
    qwen = get_chat_template("qwen")
    user = [{"role": "user", "content": "U"}]
    assert [m["role"] for m in qwen.with_system(user)] == ["system", "user"]
    assert qwen.with_system(CHAT) == CHAT
    assert get_chat_template("chatml").with_system(user) == user


def test_llama_2_puts_only_an_opening_system_message_into_the_user_turn() -> None:
    llama = get_chat_template("llama-2-chat")
    user = {"role": "user", "content": "U"}
    assert llama.get_prefix_and_suffix("system", []) == ("[INST] <<SYS>>\n", "\n<</SYS>>\n\n")
    assert llama.get_prefix_and_suffix("user", CHAT[:1]) == ("", " [/INST]")
    assert llama.get_prefix_and_suffix("user", []) == ("[INST] ", " [/INST]")
    assert llama.get_prefix_and_suffix("user", CHAT[:3]) == ("[INST] ", " [/INST]")
    assert llama.get_prefix_and_suffix("system", [user]) == ("<<SYS>>\n", "\n<</SYS>>\n\n")


def test_a_role_that_a_template_does_not_know_stands_bare() -> None:
    assert get_chat_template("chatml").get_prefix_and_suffix("tool", []) == ("", "")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("databricks/dbrx-instruct", "dbrx-instruct"),
        ("lmsys/vicuna-7b-v1.5", "vicuna_v1.1"),
        ("liuhaotian/llava-v1.5-7b", "vicuna_v1.1"),
        ("lmms-lab/LLaVA-NeXT-Video-7B-DPO", "vicuna_v1.1"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-chat"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "llama-2-chat"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "llama-2-chat"),
        ("codellama/CodeLlama-7b-Instruct-hf", "llama-2-chat"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-instruct"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "chatml"),
        ("Qwen/Qwen1.5-7B-Chat", "qwen"),
        ("Qwen/Qwen2-7B-Instruct", "qwen"),
        ("liuhaotian/llava-v1.6-34b", "chatml-llava"),
        ("lmms-lab/LLaVA-NeXT-Video-34B-DPO", "chatml-llava"),
        ("01-ai/Yi-VL-6B", "yi-vl"),
        ("x/llava-yi-vl", "default"),
        ("01-ai/Yi-1.5-9B-Chat", "yi-1.5"),
        ("google/gemma-2b-it", "gemma-it"),
        ("CohereForAI/c4ai-command-r-v01", "c4ai-command-r"),
        ("internlm/internlm2-chat-7b", "internlm2-chat"),
        ("google/gemma-4-31b-it", "gemma-4-it"),
        ("mistralai/Mistral-Small-24B-Instruct-2501", "mistral"),
        ("mistralai/Mistral-Small-Instruct-2409", "llama-2-chat"),
        ("mistralai/Pixtral-12B-2409", "mistral"),
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2-vl"),
        ("lmms-lab/llama3-llava-next-8b", "llama-3-instruct-llava"),
        ("ibm-granite/granite-3.1-8b-instruct", "granite-3-instruct"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("openbmb/MiniCPM-V-2_6", "minicpmv"),
        ("openbmb/MiniCPM-o-2_6", "minicpmo"),
        ("deepseek-ai/Janus-Pro-7B", "janus-pro"),
        ("deepseek-ai/Janus-1.3B", "janus"),
        ("OpenGVLab/InternVL2_5-8B", "internvl-2-5"),
        ("internlm/Intern-S1", "interns1"),
        ("zai-org/GLM-4.1V-9B-Thinking", "glm-4v"),
        ("meta-llama/Llama-2-7b-hf", "default"),
        ("/some/folder", "default"),
        ("", "default"),
    ],
)
def test_the_path_of_a_model_suggests_its_template(path: str, name: str) -> None:
    assert get_chat_template_by_model_path(path).name == name


def test_templates_and_matching_functions_can_be_added() -> None:
    mine = ChatTemplate("mine", None, {"user": ("<", ">")})
    chat.register_chat_template(mine)
    try:
        chat.register_chat_template_matching_function(lambda path: mine if "mine" in path else None)
        chat.register_chat_template_matching_function(lambda path: "chatml" if "mine-by-name" in path else None)
        assert get_chat_template("mine") is mine
        assert get_chat_template_by_model_path("x/mine-vicuna") is mine, "asked before the table"
        assert get_chat_template_by_model_path("x/mine-by-name").name == "chatml", "the latest first"
        assert get_chat_template_by_model_path("x/vicuna").name == "vicuna_v1.1"
    finally:
        del chat._templates["mine"], chat._matches[:2]


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(KeyError, match=r"nonsense.*chatml"):
        get_chat_template("nonsense")
