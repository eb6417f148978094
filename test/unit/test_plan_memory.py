"""`sglang plan`: its numbers against those of a loaded engine and of arithmetic, and what it advises."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sglang import cli
from sglang.base.config import DEMO_MODEL, ServerConfig
from sglang.engine.engine import Engine
from sglang.plan_memory import GIB, Planner, memory, report, split
from sglang.quant.stacked import planned_bytes

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0, "rms_norm_eps": 1e-05,
}  # fmt: skip
PARAMETERS = 8_030_261_248
TINY = LLAMA_8B | {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "torch_dtype": "float16",
}  # fmt: skip


def folder(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def headers_only(path: Path, shapes: dict[str, tuple[str, list[int]]]) -> int:
    """A safetensors file whose data is a hole in the disk. Returns the bytes of its tensors."""
    widths = {"U8": 1, "BF16": 2, "F16": 2, "I32": 4, "F8_E4M3": 1, "F32": 4}
    at, head = 0, {}
    for name, (dtype, shape) in shapes.items():
        size = widths[dtype] * torch.Size(shape).numel()
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return at


def llama(config: dict[str, Any], linear: Any) -> dict[str, tuple[str, list[int]]]:
    """Tensors of a Llama; linear: (name, outputs, inputs) -> those of one map."""
    h, inter, kv = config["hidden_size"], config["intermediate_size"], config["hidden_size"] // 4
    if config["num_attention_heads"] == 4:
        kv = h // 2
    found: dict[str, tuple[str, list[int]]] = {}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        maps = {"self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h)}
        maps |= {"self_attn.o_proj": (h, h), "mlp.gate_proj": (inter, h), "mlp.up_proj": (inter, h)}
        for name, shape in (maps | {"mlp.down_proj": (h, inter)}).items():
            found |= linear(layer + name, *shape)
        found |= {layer + f"{norm}.weight": ("BF16", [h]) for norm in ("input_layernorm", "post_attention_layernorm")}
    vocab = config["vocab_size"]
    return found | {
        "model.embed_tokens.weight": ("BF16", [vocab, h]),
        "lm_head.weight": ("BF16", [vocab, h]),
        "model.norm.weight": ("BF16", [h]),
    }


def plain(name: str, rows: int, inputs: int) -> dict[str, tuple[str, list[int]]]:
    return {name + ".weight": ("BF16", [rows, inputs])}


def gptq(name: str, rows: int, inputs: int) -> dict[str, tuple[str, list[int]]]:
    groups = inputs // 32
    return {
        name + ".qweight": ("I32", [inputs // 8, rows]),
        name + ".qzeros": ("I32", [groups, rows // 8]),
        name + ".scales": ("F16", [groups, rows]),
        name + ".g_idx": ("I32", [inputs]),
    }


def test_llama_8b_takes_what_is_known_of_it(tmp_path: Path) -> None:
    path = folder(tmp_path, LLAMA_8B)
    assert headers_only(path / "model.safetensors", llama(LLAMA_8B, plain)) == 2 * PARAMETERS
    config = ServerConfig(model_path=str(path), max_running_requests=64).resolve()
    planner = Planner(config, "cuda", 80 * GIB)
    need = planner.need(config)
    assert planner.parameters == PARAMETERS and need.weights == 2 * PARAMETERS
    assert need.cell == 128 * 1024
    assert need.tokens == int((80 * GIB * 0.88 - need.weights - need.step - need.constraints) / need.cell)
    half = planner.need(config, 2)
    assert half.cell == need.cell / 2
    rounded = planner.need(replace(config, kv_cache_dtype="fp8_e4m3"))
    assert rounded.cell == need.cell / 2 and rounded.tokens == pytest.approx(2 * need.tokens, abs=2)
    whole = 2 * (2 * 128256 * 4096 + 65 * 4096)  # embedding, head and norms are in every rank
    assert half.weights == (2 * PARAMETERS - whole) / 2 + whole


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_an_engine_takes_what_was_planned(quantization: str | None) -> None:
    config = ServerConfig(quantization=quantization, dtype="float32", device="cpu", max_total_tokens=512).resolve()
    need = Planner(config, "cpu").need(config)
    ready = Engine.load(config, progress=False).ready
    assert need.weights == pytest.approx(ready.weight_bytes, rel=0.0 if quantization is None else 0.03)
    assert need.tokens * need.cell == ready.kv_bytes and need.tokens == 512


def test_weights_in_few_bits_count_as_they_are_stored(tmp_path: Path) -> None:
    form = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    path = folder(tmp_path, TINY | {"quantization_config": form})
    stored = headers_only(path / "model.safetensors", llama(TINY, gptq))
    config = ServerConfig(model_path=str(path)).resolve()
    need = Planner(config, "cuda", GIB).need(config)
    assert need.weights == pytest.approx(stored)


def test_what_a_start_would_refuse_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path, TINY)
    tensors = llama(TINY, plain)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    headers_only(path / "model.safetensors", tensors)
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", str(path)])
    assert ended.value.code == 2
    assert "1 tensors are missing: model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err


def test_every_advice_makes_it_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path, LLAMA_8B)
    words = ["plan", str(path), "--load-format", "dummy", "--device-memory", "36GiB"]
    assert cli.main(words) == 1
    told = capsys.readouterr().out
    assert "It does not fit. Any one of these" in told
    advice = [line.split("  ")[1].split() for line in told.splitlines() if line.startswith("  --")]
    assert {flag for flag, _ in advice} >= {"--context-length", "--quantization"}
    for flags in advice:
        assert cli.main([*words, *flags]) == 0, flags
        assert "It fits, with room for" in capsys.readouterr().out


def test_a_device_that_is_far_too_small_is_told_the_size_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder(tmp_path, LLAMA_8B)
    words = ["plan", str(path), "--load-format", "dummy", "--context-length", "4096"]
    assert cli.main([*words, "--device-memory", "4GiB"]) == 1
    told = capsys.readouterr().out
    assert "No flag alone makes it fit" in told
    enough = told.rsplit("device with ", 1)[1].split(" ")[0]
    assert cli.main([*words, "--device-memory", f"{enough}GiB"]) == 0


class Counting(Planner):
    counted = 0

    def _bytes(self, kind: str) -> dict[str, float]:
        self.counted += 1
        return super()._bytes(kind)


def test_weights_are_counted_once_however_many_sizes_are_tried(tmp_path: Path) -> None:
    """A large model has experts by the ten thousand."""
    config = ServerConfig(model_path=str(folder(tmp_path, LLAMA_8B)), load_format="dummy").resolve()
    planner = Counting(config, "cuda", 4 * GIB)
    lines, fits = report(planner, config, 1)
    assert not fits and "it takes a device with" in lines[-1]
    assert planner.counted == 2  # as they are, and as --quantization fp8 would keep them


def test_the_demo_model_fits_here_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--device", "cpu", "--max-total-tokens", "4096"]) == 0
    told = capsys.readouterr().out
    assert "LlamaForCausalLM" in told and "room for 2 texts" in told


def test_ranks_are_planned_and_that_they_are_not_served_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--device-memory", "8GiB", "--tp-size", "2"]) == 0
    assert "a rank of 2" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "size"), [("80GiB", 80 * GIB), ("24g", 24 * GIB), ("1.5 TB", 1536 * GIB), ("7", 7)])
def test_memory_is_read(text: str, size: float) -> None:
    assert memory(text) == size


def test_a_nonsense_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "--device-memory", "much"])
    assert ended.value.code == 2 and "such as 80GiB, got 'much'" in capsys.readouterr().err


def test_maps_are_split_and_the_rest_is_not() -> None:
    assert split("layers.0.qkv.q.weight") and split("layers.3.experts.7.down.weight")
    assert not split("layers.0.attn_norm.weight") and not split("embed.weight") and not split("layers.0.router.weight")
    assert DEMO_MODEL.is_dir()


def test_a_real_checkpoint_of_several_files_is_counted_whole(tmp_path: Path) -> None:
    path = folder(tmp_path, TINY)
    tensors = {n: torch.zeros(s, dtype=torch.float16) for n, (_, s) in llama(TINY, plain).items()}
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:5]}, path / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[5:]}, path / "model-00002-of-00002.safetensors")
    index = {n: f"model-0000{1 + (i >= 5)}-of-00002.safetensors" for i, n in enumerate(names)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = ServerConfig(model_path=str(path)).resolve()
    assert Planner(config, "cuda", GIB).need(config).weights == sum(t.numel() * 2 for t in tensors.values())


MOE = TINY | {"num_local_experts": 3, "num_experts_per_tok": 2}
OSS = MOE | {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "head_dim": 16, "sliding_window": 16,
    "hidden_size": 96, "intermediate_size": 64, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip


def oss(config: dict[str, Any]) -> dict[str, tuple[str, list[int]]]:
    h, inter, n, vocab = config["hidden_size"], config["intermediate_size"], 3, config["vocab_size"]
    found: dict[str, tuple[str, list[int]]] = {}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, rows, inputs in (("q", 64, h), ("k", 32, h), ("v", 32, h), ("o", h, 64)):
            found |= plain(f"{layer}self_attn.{name}_proj", rows, inputs)
        found |= {layer + "self_attn.sinks": ("BF16", [4]), layer + "mlp.router.weight": ("BF16", [n, h])}
        found |= {layer + "mlp.router.bias": ("BF16", [n])}
        for name, rows, inputs in (("gate_up_proj", 2 * inter, h), ("down_proj", h, inter)):
            found |= {
                f"{layer}mlp.experts.{name}_blocks": ("U8", [n, rows, inputs // 32, 16]),
                f"{layer}mlp.experts.{name}_scales": ("U8", [n, rows, inputs // 32]),
                f"{layer}mlp.experts.{name}_bias": ("BF16", [n, rows]),
            }
        found |= {layer + f"{norm}.weight": ("BF16", [h]) for norm in ("input_layernorm", "post_attention_layernorm")}
    maps = {"model.embed_tokens.weight": [vocab, h], "lm_head.weight": [vocab, h], "model.norm.weight": [h]}
    return found | {name: ("BF16", shape) for name, shape in maps.items()}


def planned(path: Path, device: str, **flags: Any) -> float:
    config = ServerConfig(model_path=str(path), **flags).resolve()
    return Planner(config, device, GIB).need(config).weights


def test_experts_in_mxfp4_take_a_quarter_on_a_device_and_all_on_a_cpu(tmp_path: Path) -> None:
    path = folder(tmp_path, OSS)
    tensors = oss(OSS)
    headers_only(path / "model.safetensors", tensors)
    codes = [shape for name, (_, shape) in tensors.items() if name.endswith("_blocks")]
    rest = sum(2 * torch.Size(shape).numel() for dtype, shape in tensors.values() if dtype == "BF16")
    written_out = rest + sum(2 * n * rows * groups * 32 for n, rows, groups, _ in codes)
    assert planned(path, "cpu", dtype="bfloat16") == written_out
    # 96 and 64 inputs take a piece of 128, which is 16 words and one of factors.
    assert planned(path, "cuda") == rest + sum(n * rows * 68 for n, rows, *_ in codes)
    # Whoever has no 4-bit products for a type has it plain.
    assert planned(path, "cuda", dtype="float32") == 2 * written_out
    assert planned(path, "cuda", quantization="fp8") < planned(path, "cuda")
    assert planned(path, "cuda", load_format="dummy") == planned(path, "cuda")


@pytest.mark.parametrize(("desc_act", "size"), [(False, 32), (True, None)])
def test_experts_in_gptq_are_counted_as_they_are_kept(desc_act: bool, size: int | None, tmp_path: Path) -> None:
    form = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": desc_act, "sym": True}
    config = MOE | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "quantization_config": form}
    path = folder(tmp_path, config)
    tensors = llama(config, gptq)
    for name in [n for n in tensors if ".mlp." in n]:
        del tensors[name]
    h, inter = config["hidden_size"], config["intermediate_size"]
    experts: list[tuple[int, int]] = []
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}.block_sparse_moe."
        tensors |= plain(block + "gate", 3, h)
        for e in range(3):
            for name, rows, inputs in (("w1", inter, h), ("w3", inter, h), ("w2", h, inter)):
                tensors |= gptq(f"{block}experts.{e}.{name}", rows, inputs)
                experts.append((rows, inputs))
    stored = headers_only(path / "model.safetensors", tensors)
    inside = sum(
        {"I32": 4, "F16": 2}[dtype] * torch.Size(shape).numel()
        for name, (dtype, shape) in tensors.items()
        if ".experts." in name
    )
    kept = sum(planned_bytes(rows, inputs, 2, "int4", inputs // size if size else 0) for rows, inputs in experts)
    assert planned(path, "cuda") == pytest.approx(stored - inside + kept)
    assert planned(path, "cpu", dtype="float16") == pytest.approx(
        stored - inside + 2 * sum(rows * inputs for rows, inputs in experts)
    )
