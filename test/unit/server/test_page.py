"""The page at `/` as it is served. What it does is tested in a browser, in test/e2e/test_page.py."""

import base64
import hashlib
import re
from typing import Any

from sglang.base.config import ServerConfig
from sglang.server.page import FILE, policy


def test_the_page_may_run_its_own_script_and_talk_to_its_server_alone(echo: Any) -> None:
    answer = echo.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    allowed = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert allowed["default-src"] == allowed["frame-ancestors"] == "'none'"
    assert allowed["connect-src"] == "'self'"
    [script] = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert allowed["script-src"] == f"'sha256-{digest}'"


def test_a_changed_script_has_another_policy() -> None:
    html = FILE.read_text()
    assert policy(html) != policy(html.replace('"use strict"', '"use strict";', 1))


def test_the_page_loads_nothing() -> None:
    html = FILE.read_text()
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=\"(?!data:)", html)
    assert "@import" not in html
    assert not re.search(r"url\((?!data:)", html)
    assert not re.search(r"\son\w+=\"|\sstyle=\"|innerHTML|insertAdjacentHTML|eval\(", html), "forbidden by the policy"
    assert len(html) < 40_000


def test_who_has_no_key_may_have_the_page_and_nothing_else(serving: Any) -> None:
    with serving(config=ServerConfig(model_path="m", api_key="k")) as server:
        assert server.get("/").status_code == 200
        assert server.get("/v1/models").status_code == 401
        assert server.get("//v1/models").status_code in (401, 404)
        assert server.post("/generate", {"text": "x"}).status_code == 401
        assert server.http.request("POST", "/").status_code == 405
