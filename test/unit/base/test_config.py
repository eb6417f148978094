"""Flags are the fields of one record; an impossible setting is refused in one line that names its flag."""

import argparse
import dataclasses
from typing import Any

import pytest

from sglang.base.config import DEMO_MODEL, ServerConfig, add_flags, fail, from_args, spell
from sglang.base.errors import ConfigError


def parse(*words: str) -> ServerConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_args(parser.parse_args(words))


def test_no_flags_are_the_defaults() -> None:
    assert parse() == ServerConfig()


def test_every_field_is_a_flag_with_help() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    text = parser.format_help()
    for f in dataclasses.fields(ServerConfig):
        assert spell(f.name) in text
        assert f.metadata["help"]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--model x/y", "model_path", "x/y"),
        ("--model-path x/y", "model_path", "x/y"),
        ("--tp 2", "tp_size", 2),
        ("--tensor-parallel-size 2", "tp_size", 2),
        ("--dp 3", "dp_size", 3),
        ("--nccl-init a:1", "nccl_init_addr", "a:1"),
        ("--dist-init-addr a:1", "nccl_init_addr", "a:1"),
        ("--schedule-heuristic fcfs", "schedule_policy", "fcfs"),
        ("--mem-fraction-static 0.5", "mem_fraction_static", 0.5),
        ("--mem-frac 0.5", "mem_fraction_static", 0.5),
        ("--context-length 4096", "context_length", 4096),
        ("--log-level-http error", "log_level_http", "error"),
        ("--disable-radix-cache", "disable_radix_cache", True),
        ("--drain-timeout 2", "drain_timeout", 2.0),
    ],
)
def test_a_flag_sets_its_field_and_no_other(words: str, field: str, value: Any) -> None:
    assert parse(*words.split()) == dataclasses.replace(ServerConfig(), **{field: value})


@pytest.mark.parametrize("words", ["--dtype int3", "--context-length 4k", "--nonsense", "--port", "--log-level loud"])
def test_a_flag_that_cannot_be_read_ends_with_code_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words.split())
    assert caught.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


def test_settings_go_by_any_name_of_their_flags() -> None:
    assert ServerConfig.of(disable_jump_forward=True, tp=2) == ServerConfig(disable_regex_jump_forward=True, tp_size=2)
    with pytest.raises(TypeError, match="disable_jumps"):
        ServerConfig.of(disable_jumps=True)


def test_flags_of_other_programs_are_left_alone() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=1)
    add_flags(parser)
    assert from_args(parser.parse_args(["--batch", "4", "--port", "5"])).port == 5


def test_resolving_fills_in_what_is_derived_and_is_settled_then() -> None:
    config = ServerConfig().resolve()
    assert config.model_path == config.tokenizer_path == str(DEMO_MODEL)
    assert config.model_name == "demo"
    assert config.random_seed is not None
    assert config.resolve() == config
    other = ServerConfig(model_path="a/b", served_model_name="name").resolve()
    assert (other.tokenizer_path, other.model_name) == ("a/b", "name")
    assert ServerConfig(model_path="a/b", tokenizer_path="c/d").resolve().tokenizer_path == "c/d"


@pytest.mark.parametrize(
    "change",
    [
        {"chunked_prefill_size": 0}, {"chunked_prefill_size": -2}, {"page_size": 0}, {"max_queued_requests": 0},
        {"max_prefill_tokens": 0}, {"stream_interval": 0}, {"decode_log_interval": 0}, {"context_length": 0},
        {"max_total_tokens": -1}, {"max_running_requests": 0}, {"cpu_threads": 0}, {"port": 0}, {"port": 65536},
        {"cpu_threads": 1025},
        {"mem_fraction_static": 0.0}, {"mem_fraction_static": 1.0}, {"mem_fraction_static": float("nan")},
        {"schedule_conservativeness": 0.0}, {"schedule_conservativeness": float("nan")},
        {"drain_timeout": -1.0}, {"drain_timeout": float("inf")}, {"watchdog_timeout": 0.0}, {"random_seed": -1},
        {"random_seed": 2**63}, {"node_rank": 1}, {"node_rank": -1}, {"tp_size": 2}, {"tp_size": 0}, {"dp_size": 2},
        {"nnodes": 2}, {"nccl_init_addr": "a:1"}, {"enable_p2p_check": True},
        {"ssl_keyfile": "k"}, {"ssl_certfile": "c"}, {"ssl_ca_certs": "c"},
        {"dtype": "int3"}, {"log_level_http": "loud"}, {"schedule_policy": None}, {"port": "5"}, {"port": True},
        {"page_size": 1.5}, {"context_length": "4k"}, {"trust_remote_code": 1}, {"model_path": None},
        {"mem_fraction_static": "half"}, {"api_key": 5}, {"kv_cache_dtype": "fp8"},
        {"disable_flashinfer": True, "attention_backend": "flashinfer"},
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_setting_is_refused_in_one_line_that_names_its_flag(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig(**change).resolve()
    assert spell(next(iter(change))) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"chunked_prefill_size": -1}, {"chunked_prefill_size": 1}, {"port": 65535}, {"log_level_http": "info"},
        {"log_level_http": None}, {"drain_timeout": 0}, {"mem_fraction_static": 0.5}, {"random_seed": 0},
        {"ssl_keyfile": "k", "ssl_certfile": "c"}, {"trust_remote_code": True}, {"schedule_conservativeness": 2},
        {"kv_cache_dtype": "fp8_e5m2"}, {"attention_backend": "flashinfer"},
    ],
    ids=str,
)  # fmt: skip
def test_a_possible_setting_is_kept(change: dict[str, Any]) -> None:
    config = ServerConfig(**change).resolve()
    assert {name: getattr(config, name) for name in change} == change


def test_a_refused_start_says_why_in_one_line_and_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fail(ConfigError("--port must be free"))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: --port must be free\n"
