"""Loading: what is read, and the one line that each kind of wrong checkpoint is refused with."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sglang.base.config import ServerConfig
from sglang.base.errors import ConfigError
from sglang.engine.engine import Engine

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}


GEMMA2 = {"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": 8, "sliding_window": 4}
CHOSEN = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}
GROUPS = {"architectures": ["Glm4MoeForCausalLM"], "n_routed_experts": 4, "moe_intermediate_size": 8}
GROUPS |= {"n_group": 2, "topk_group": 1}
LATENT = {"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
LATENT |= {"qk_nope_head_dim": 8, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
DEEPSEEK = {"architectures": ["DeepseekV2ForCausalLM"], "num_experts_per_tok": 1, "moe_intermediate_size": 8}


def tensors(tied: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (32, 16), "model.norm": (16,), "lm_head": (32, 16)}
    for i in range(2):
        layer = f"model.layers.{i}."
        shapes |= {layer + "input_layernorm": (16,), layer + "post_attention_layernorm": (16,)}
        shapes |= {layer + "self_attn.q_proj": (16, 16), layer + "self_attn.o_proj": (16, 16)}
        shapes |= {layer + "self_attn.k_proj": (8, 16), layer + "self_attn.v_proj": (8, 16)}
        shapes |= {
            layer + "mlp.gate_proj": (24, 16),
            layer + "mlp.up_proj": (24, 16),
            layer + "mlp.down_proj": (16, 24),
        }
    if tied:
        del shapes["lm_head"]
    return {name + ".weight": torch.randn(shape) for name, shape in shapes.items()}


def folder(
    path: Path, files: dict[str, dict[str, torch.Tensor]], index: Any = None, config: dict[str, Any] | None = None
) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    for name, content in files.items():
        if name.endswith(".bin"):
            torch.save(content, path / name)
        else:
            save_file(content, path / name)
    if index is not None:
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def load(path: Path, **flags: Any) -> Engine:
    settings: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_total_tokens": 64, **flags}
    return Engine.load(ServerConfig(model_path=str(path), **settings).resolve(), progress=False)


def refused(path: Path, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, **flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def embedding(engine: Engine) -> torch.Tensor:
    return engine._model.embed.weight


def test_shards_named_by_an_index_are_read_and_other_files_are_not(tmp_path: Path) -> None:
    content = list(tensors().items())
    parts = {"a.safetensors": dict(content[:5]), "b.safetensors": dict(content[5:])}
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    path = folder(tmp_path, {**parts, "consolidated.safetensors": {"tok_embeddings": torch.ones(1)}}, index)
    assert torch.equal(embedding(load(path)), dict(content)["model.embed_tokens.weight"])


def test_pickled_weights_load_as_plain_tensors(tmp_path: Path) -> None:
    path = folder(tmp_path, {"pytorch_model.bin": tensors()})
    for load_format in ("pt", "auto"):
        assert torch.equal(embedding(load(path, load_format=load_format)), tensors()["model.embed_tokens.weight"])


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path = folder(tmp_path, {})
    torch.save({"model.norm.weight": Bomb()}, path / "pytorch_model.bin")
    assert "not loadable as plain weights" in refused(path, load_format="pt")
    assert not (tmp_path / "ran").exists()


def test_old_rotary_buffers_and_the_copy_of_a_tied_head_are_passed_over(tmp_path: Path) -> None:
    content = tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    load(folder(tmp_path, {"model.safetensors": content}, config={"tie_word_embeddings": True}))


def test_dummy_weights_need_no_file_and_repeat_themselves(tmp_path: Path) -> None:
    path = folder(tmp_path, {})
    first, second = (embedding(load(path, load_format="dummy")) for _ in range(2))
    assert torch.equal(first, second) and first.std() > 0


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    content = tensors()
    del content["model.layers.1.mlp.up_proj.weight"], content["lm_head.weight"]
    message = refused(folder(tmp_path, {"model.safetensors": content}))
    assert (
        "2 tensors are missing" in message
        and "model.layers.1.mlp.up_proj.weight" in message
        and "lm_head.weight" in message
    )


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.7.mlp.up_proj.weight", "vision.patch.weight"]
)
def test_what_is_unexpected_is_named_with_its_file(name: str, tmp_path: Path) -> None:
    message = refused(folder(tmp_path, {"model.safetensors": tensors() | {name: torch.ones(16)}}))
    assert f"model.safetensors: {name}" in message and "unexpected" in message


def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    content = tensors() | {"model.layers.1.self_attn.k_proj.weight": torch.ones(16, 16)}
    message = refused(folder(tmp_path, {"model.safetensors": content}))
    assert "model.safetensors: model.layers.1.self_attn.k_proj.weight has shape [16, 16]" in message
    assert "[8, 16]" in message


MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "sliding_window": None,
}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "num_hidden_layers": 1}


def mixtral_tensors() -> dict[str, torch.Tensor]:
    content = {name: t for name, t in tensors().items() if ".mlp." not in name}
    for layer in ("model.layers.0.block_sparse_moe.", "model.layers.1.block_sparse_moe."):
        content[layer + "gate.weight"] = torch.randn(2, 16)
        for e in range(2):
            content |= {f"{layer}experts.{e}.{w}.weight": torch.randn(24, 16) for w in ("w1", "w3")}
            content[f"{layer}experts.{e}.w2.weight"] = torch.randn(16, 24)
    return content


def test_experts_fill_their_places_and_one_too_few_or_too_many_is_named(tmp_path: Path) -> None:
    content = mixtral_tensors()
    engine = load(folder(tmp_path, {"model.safetensors": content}, config=MIXTRAL))
    experts, x = engine._model.layers[1].mlp.experts, torch.randn(3, 16)
    w1, w3, w2 = (content[f"model.layers.1.block_sparse_moe.experts.1.{w}.weight"] for w in ("w1", "w3", "w2"))
    wanted = (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
    given = experts(x, torch.ones(3, 1), torch.ones(3, 1, dtype=torch.int64))
    assert torch.allclose(given, wanted, rtol=1e-4, atol=1e-4)
    extra = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    message = refused(folder(tmp_path, {"model.safetensors": content | {extra: torch.ones(24, 16)}}, config=MIXTRAL))
    assert f"1 unexpected tensors: model.safetensors: {extra}" in message
    del content["model.layers.1.block_sparse_moe.experts.0.w2.weight"]
    message = refused(folder(tmp_path, {"model.safetensors": content}, config=MIXTRAL))
    assert "1 tensors are missing: model.layers.1.block_sparse_moe.experts.0.w2.weight" in message


def fused(rows: int) -> dict[str, torch.Tensor]:
    content = {name: t for name, t in tensors().items() if ".1." not in name and "up_proj" not in name}
    qkv = [content.pop(f"model.layers.0.self_attn.{p}_proj.weight") for p in "qkv"]
    content["model.layers.0.self_attn.qkv_proj.weight"] = torch.cat(qkv)[:rows]
    content["model.layers.0.mlp.gate_up_proj.weight"] = torch.randn(48, 16)
    del content["model.layers.0.mlp.gate_proj.weight"]
    return content


def test_a_fused_tensor_of_the_wrong_size_is_refused_with_the_sizes_of_its_parts(tmp_path: Path) -> None:
    load(folder(tmp_path, {"model.safetensors": fused(32)}, config=PHI3))
    message = refused(folder(tmp_path, {"model.safetensors": fused(31)}, config=PHI3))
    assert "qkv_proj.weight has shape [31, 16], the config asks for [16, 16] and [8, 16] and [8, 16]" in message


def test_a_missing_fused_tensor_is_named_once(tmp_path: Path) -> None:
    content = fused(32)
    del content["model.layers.0.self_attn.qkv_proj.weight"]
    message = refused(folder(tmp_path, {"model.safetensors": content}, config=PHI3))
    assert message.endswith("1 tensors are missing: model.layers.0.self_attn.qkv_proj.weight")


def test_parts_and_their_fused_tensor_cannot_both_be_there(tmp_path: Path) -> None:
    content = fused(32) | {"model.layers.0.self_attn.k_proj.weight": torch.ones(8, 16)}
    assert "are the same weight" in refused(folder(tmp_path, {"model.safetensors": content}, config=PHI3))


def test_layers_for_guessing_ahead_are_passed_over_and_those_beyond_are_not(tmp_path: Path) -> None:
    glm = {
        "architectures": ["Glm4MoeForCausalLM"],
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 2,
        "num_nextn_predict_layers": 1,
    }
    content = tensors() | {"model.layers.2.eh_proj.weight": torch.ones(4)}
    load(folder(tmp_path, {"model.safetensors": content}, config=glm))
    content["model.layers.3.eh_proj.weight"] = torch.ones(4)
    message = refused(folder(tmp_path, {"model.safetensors": content}, config=glm))
    assert "1 unexpected tensors: model.safetensors: model.layers.3.eh_proj.weight" in message


def test_integers_are_not_taken_for_weights(tmp_path: Path) -> None:
    content = tensors() | {"model.norm.weight": torch.ones(16, dtype=torch.int8)}
    assert "model.norm.weight has type I8" in refused(folder(tmp_path, {"model.safetensors": content}))


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    files = {"a.safetensors": tensors(), "b.safetensors": {"model.norm.weight": torch.ones(16)}}
    assert "b.safetensors: model.norm.weight is also in a.safetensors" in refused(folder(tmp_path, files))


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_that_points_outside_the_folder_is_refused(file: str, tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "secret.safetensors")
    path = folder(tmp_path / "model", {}, {"weight_map": {"lm_head.weight": file}})
    assert "outside the model's folder" in refused(path)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": 3}, {"weight_map": {"a": "gone.safetensors"}}], ids=str)
def test_a_broken_index_is_refused(index: Any, tmp_path: Path) -> None:
    message = refused(folder(tmp_path, {"model.safetensors": tensors()}, index))
    assert "model.safetensors.index.json" in message


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, {"model.safetensors": tensors()})
    whole = (path / "model.safetensors").read_bytes()
    for size in (0, 100, len(whole) - 10):
        (path / "model.safetensors").write_bytes(whole[:size])
        assert "not a readable safetensors file" in refused(path)


def test_a_folder_without_weights_says_what_would_work(tmp_path: Path) -> None:
    assert "--load-format dummy" in refused(folder(tmp_path, {}))
    assert "*.safetensors" in refused(tmp_path, load_format="safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["Foo"]}, r"Unsupported architectures: \['Foo'\]. Supported list: .*LlamaForCausalLM"),
        ({"architectures": []}, "Supported list"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is not supported.*silu"),
        ({"rope_scaling": {"type": "spiral"}}, "rope_type = 'spiral' is not supported.*llama3"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}}, "short_factor must hold 4"),
        ({"rope_parameters": {"full": {"rope_type": "default"}}}, "rope_parameters"),
        ({"layer_types": ["sliding_attention"], "architectures": ["Gemma2ForCausalLM"]}, "'query_pre_attn_scalar' is"),
        ({"layer_types": ["full_attention"], **GEMMA2}, "layer_types = .'full_attention'. is not supported"),
        ({"layer_types": ["full_attention", "linear_attention"], **GEMMA2}, "layer_types = .* is not supported"),
        ({"use_bidirectional_attention": True, **GEMMA2}, "use_bidirectional_attention = True"),
        ({"n_routed_experts": 2, **DEEPSEEK, "topk_method": "luck"}, "topk_method = 'luck'.*greedy"),
        ({"n_routed_experts": 2, **DEEPSEEK, "scoring_func": "sigmoid"}, "scoring_func = 'sigmoid'.*softmax"),
        ({**LATENT, "scoring_func": "softmax"}, "scoring_func = 'softmax' is not supported .known: sigmoid"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "num_key_value_heads = 2"),
        ({"hidden_size": "big"}, "hidden_size = 'big' is not supported .it must be a whole number"),
        ({"hidden_size": -64}, "hidden_size = -64 is not supported"),
        ({"num_hidden_layers": 2.5}, r"num_hidden_layers = 2\.5 is not supported"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is not supported .at most"),
        ({"num_attention_heads": True}, "num_attention_heads = True is not supported"),
        ({"num_experts": -1}, "num_experts = -1 is not supported"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small' is not supported .it must be a number"),
        ({"rope_theta": [1e4]}, "rope_theta = .* is not supported"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear' is not supported .it must be an object"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "rope_scaling.factor = 'two' is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, "factor is missing .rope_type = 'yarn' needs it"),
        ({"rope_parameters": {"full_attention": {"rope_theta": "x"}}}, "rope_parameters.rope_theta = 'x' is not"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "rope_scaling.factor = nan is not supported"),
        ({"hidden_size": None}, "wrong type for LlamaForCausalLM"),
        ({"vocab_size": None}, "vocab = None is not supported .it must be a whole number"),
        ({"rms_norm_eps": None}, "norm_eps = None is not supported .it must be a number"),
        ({"partial_rotary_factor": 3}, "rotated dims of a head = 24 is not supported .it must be 1 to 8"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}, "rope_theta": 1}, r"theta = 1\.0 is not supported"),
        ({**GEMMA2, "sliding_window": 0}, "window = 0 is not supported .it must be at least 1"),
        ({**GEMMA2, "sliding_window": 10**12}, "window = 1000000000000 is not supported"),
        ({**GEMMA2, "query_pre_attn_scalar": -8}, "attn_scale = .*j. is not supported .it must be a number"),
        ({**LATENT, "rope_interleave": {}}, "interleaved = {} is not supported .it must be true or false"),
        ({**GEMMA2, "attn_logit_softcapping": "soft"}, "attn_softcap = 'soft' is not supported .it must be a number"),
        ({**CHOSEN, "num_experts_per_tok": 5}, "experts of a token = 5 is not supported .it must be 1 to 4"),
        ({**CHOSEN, "num_experts_per_tok": 0}, "experts of a token = 0 is not supported"),
        ({**CHOSEN, "num_local_experts": None}, "count = None is not supported"),
        ({**CHOSEN, **GROUPS, "n_group": 3}, "groups of experts = 3 is not supported .it must be a divisor of 4"),
        ({**CHOSEN, **GROUPS, "topk_group": 3}, "groups of a token = 3 is not supported .it must be 1 to 2"),
        ({**CHOSEN, **GROUPS, "mlp_layer_types": ["dense"]}, "a list of Glm4MoeForCausalLM's layers is none, or too"),
        ({"eos_token_id": "</s>"}, "eos_token_id = '</s>' is not supported .it must be a number or a list"),
        ({"quantization_config": "awq"}, "quantization_config = 'awq' is not supported .it must be an object"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": "big"}},
            "quantization_config.group_size = 'big' is not supported",
        ),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quantization_config.quant_method = 'aqlm'.*known: awq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 3}}, "quantization_config.bits = 3 .*known: 4"),
    ],
    ids=str,
)
def test_a_config_we_cannot_run_is_refused_by_key_and_value(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    message = refused(folder(tmp_path, {}, config=changes), load_format="dummy")
    assert re.search(words, message), message


def test_a_key_the_config_lacks_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path, {})
    config = {k: v for k, v in CONFIG.items() if k != "num_hidden_layers"}
    (path / "config.json").write_text(json.dumps(config))
    assert "'num_hidden_layers' is missing" in refused(path, load_format="dummy")


def test_paths_that_are_no_model_are_refused_without_asking_the_hub(tmp_path: Path) -> None:
    assert "no config.json" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in refused(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "must be a JSON object" in refused(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    assert "config.json: not readable as text" in refused(tmp_path)


def test_overrides_are_merged_into_the_config(tmp_path: Path) -> None:
    path = folder(tmp_path, {})
    engine = load(path, load_format="dummy", json_model_override_args='{"num_hidden_layers": 1, "vocab_size": 40}')
    assert (len(engine._model.layers), engine.ready.vocab_size) == (1, 40)
    assert "--json-model-override-args" in refused(path, json_model_override_args="[1]")


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [(2, None, (2,)), ([2, 5], 7, (2, 5, 7)), (None, [3, 3], (3,)), (None, None, ()), (0, [0, 1], (0, 1))],
)
def test_end_tokens_of_both_files_count(in_config: Any, in_generation: Any, expected: Any, tmp_path: Path) -> None:
    path = folder(tmp_path, {}, config={"eos_token_id": in_config})
    if in_generation is not None:
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    assert load(path, load_format="dummy").eos_ids == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 64),
        ({"max_sequence_length": 96}, 96),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 128),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 128),
        ({"max_sequence_length": 96, "rope_scaling": {"type": "linear", "factor": 2.0}}, 96),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, 256),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}, 64),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}}, 64),
        ({"max_position_embeddings": None}, 2048),
    ],
    ids=str,
)
def test_the_context_is_what_the_config_says_times_what_scaling_adds(
    changes: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    path = folder(tmp_path, {}, config=changes)
    assert load(path, load_format="dummy").context_length == expected
    assert load(path, load_format="dummy", context_length=33).context_length == 33


def test_learned_positions_bound_the_context(tmp_path: Path) -> None:
    gpt2 = {"architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40}
    config = gpt2 | {"max_position_embeddings": None}
    path = folder(tmp_path, {}, config=config)
    assert load(path, load_format="dummy").context_length == 40
    message = refused(path, load_format="dummy", context_length=41)
    assert "--context-length 41" in message and "40 positions" in message


def test_a_context_of_millions_takes_no_more_memory_than_the_pool_has_positions(tmp_path: Path) -> None:
    path = folder(tmp_path, {}, config={"max_position_embeddings": 10**12})
    engine = load(path, load_format="dummy", max_total_tokens=48)
    assert engine.context_length == 10**12
    assert [len(t) for table in engine._model._tables for t in table] == [48, 48]
    assert engine._tables.pages.shape[1] == 48
