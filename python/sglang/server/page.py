"""The page at `/`: chat and live numbers, in one file that loads nothing else and may run nothing else."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request as HTTPRequest
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

FILE = Path(__file__).parent / "web" / "index.html"


def page() -> Route:
    """The route. Whoever reaches the port may have the page; what it asks of the server needs the key."""
    html = FILE.read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": policy(html),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def show(_: HTTPRequest) -> Response:
        return HTMLResponse(html, headers=headers)

    return Route("/", show)


def policy(html: str) -> str:
    """Only the script and the style that are in the page, and only this server to talk to."""
    script, style = (_hash(html, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(html: str, tag: str) -> str:
    found = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found)
