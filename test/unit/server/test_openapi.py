"""/openapi.json: what it says is what the server does."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

TALKING = ("/generate", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/abort_request")


def test_it_describes_every_route_and_only_those(echo: Any) -> None:
    paths = echo.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            status = echo.http.request(method, path.replace("{id}", "x")).status_code
            assert status not in (405, 500), path
            assert status != 404 or "{id}" in path
    for path in (*TALKING, "/health", "/v1/models", "/v1/models/{id}", "/metrics", "/get_server_args", "/flush_cache"):
        assert path in paths


def test_it_gives_the_ranges_that_are_checked(echo: Any) -> None:
    schemas = echo.get("/openapi.json").json()["components"]["schemas"]
    top_p = schemas["SamplingParams"]["properties"]["top_p"]["anyOf"][0]
    assert (top_p["exclusiveMinimum"], top_p["maximum"]) == (0, 1)
    assert schemas["CompletionRequest"]["required"] == ["prompt"]
    assert schemas["GenerateRequest"]["properties"]["sampling_params"]["anyOf"][0]["$ref"].endswith("SamplingParams")


@pytest.mark.parametrize("path", TALKING)
def test_no_body_it_allows_or_forbids_upsets_the_server(echo: Any, path: str) -> None:
    """Generated bodies, good and bad: an answer in the described shape, never a 5xx."""
    description = echo.get("/openapi.json").json()
    operation = schemathesis.openapi.from_dict(description)[path]["POST"]
    statuses: set[int] = set()

    def probe(case: Any) -> None:
        answer = case.call(base_url=echo.url)
        statuses.add(answer.status_code)
        if "text/event-stream" in (answer.headers.get("content-type") or [""])[0]:
            assert answer.text.endswith("data: [DONE]\n\n")
            return
        case.validate_response(answer, checks=[not_a_server_error, response_schema_conformance])

    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    for mode in modes:
        cases = operation.as_strategy(generation_mode=mode)
        run(cases, probe)
    assert statuses <= {200, 400}, statuses
    assert {200, 400} <= statuses, "the generator reached both sides of the door"
    assert echo.get("/health").status_code == 200


def run(cases: Any, probe: Any) -> None:
    @settings(
        max_examples=40,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def test(case: Any) -> None:
        probe(case)

    test()
