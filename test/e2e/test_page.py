"""The page at `/` in a browser: a chat, live numbers, a key where the server wants one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browse, find

pytestmark = pytest.mark.e2e
ENTER = ("Enter", 13, "\r")
SAID = "document.querySelectorAll('.assistant .text')[{}]?.textContent ?? ''"
DONE = "document.querySelectorAll('.assistant').length === {} && !document.querySelector('.writes')"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no Chromium here")
    with browse(program, tmp_path / "profile") as tab:
        yield tab


def ask(browser: Browser, question: str) -> None:
    browser.run("document.getElementById('say').focus()")
    browser.type(question)
    browser.press(*ENTER)


def test_a_chat_with_the_keyboard_alone_and_numbers_that_move(served: Any, browser: Browser) -> None:
    browser.open(served.url + "/")
    browser.wait("document.getElementById('state').textContent === 'live'")
    assert browser.run("document.activeElement.id") == "say"
    browser.run("document.getElementById('temperature').value = 0")
    ask(browser, "What is the capital of Japan?")
    browser.wait(DONE.format(1))
    assert "Tokyo" in browser.run(SAID.format(0))
    assert "per second" in browser.run("document.querySelector('.note').textContent")
    ask(browser, "What is the capital of France?")
    browser.wait(DONE.format(2))
    assert "Paris" in browser.run(SAID.format(1))
    total = "+document.querySelector('.plot h3 span + span').textContent.split(' ')[0].replace(',', '')"
    browser.wait(f"{total} >= {served.metric('sglang:generation_tokens_total')}")
    browser.wait("document.querySelector('.plot .edge').getAttribute('d').includes('L')")
    assert browser.run("document.querySelectorAll('.plot').length") == 5
    browser.run("document.getElementById('fresh').click()")
    assert browser.run("document.querySelectorAll('article').length") == 0
    assert browser.complaints == []
    assert all(url.startswith((served.url, "data:")) for url in browser.asked)


def test_escape_stops_an_answer(served: Any, browser: Browser) -> None:
    browser.open(served.url + "/")
    # An answer that is under way for ever: the page's own request, given to a stream of the test's.
    browser.run(
        "window.fetch = (path, options) => Promise.resolve(new Response(new ReadableStream({ start(sink) {"
        ' sink.enqueue(new TextEncoder().encode(\'data: {"choices":[{"delta":{"content":"so far <b>"}}]}\\n\\n\'));'
        " options.signal.addEventListener('abort', () => sink.error(options.signal.reason)) } })))"
    )
    ask(browser, "What is the capital of Japan?")
    browser.wait(f"{SAID.format(0)} === 'so far <b>'")
    assert browser.run("document.getElementById('send').textContent") == "Stop"
    browser.press("Escape", 27)
    browser.wait(DONE.format(1))
    assert browser.run("document.querySelector('.note').textContent") == "stopped"
    assert browser.run("document.getElementById('send').textContent") == "Send"


def test_an_error_is_shown_and_the_next_question_can_be_asked(served: Any, browser: Browser) -> None:
    browser.open(served.url + "/")
    browser.run("document.getElementById('tokens').value = 1; document.getElementById('temperature').min = -5")
    browser.run("document.getElementById('temperature').value = -1")
    ask(browser, "What is the capital of Japan?")
    browser.wait("document.querySelector('.failed') !== null")
    assert "temperature" in browser.run("document.querySelector('.note').textContent")
    browser.run("document.getElementById('temperature').value = 0")
    ask(browser, "What is the capital of Japan?")
    browser.wait(DONE.format(2))
    assert "cut at the limit" in browser.run("document.querySelectorAll('.note')[1].textContent")


def test_a_key_is_asked_for_until_it_is_right_and_kept_for_the_tab(start_server: Any, browser: Browser) -> None:
    with start_server("--api-key", "s3cret") as server:
        browser.open(server.url + "/")
        for key in ("wrong", "s3cret"):
            browser.wait("document.getElementById('door').open && document.activeElement.id === 'key'")
            browser.type(key)
            browser.press(*ENTER)
            browser.wait("!document.getElementById('door').open || document.getElementById('key').value === ''")
        browser.wait("document.getElementById('name').textContent === 'demo'")
        ask(browser, "What is the capital of Japan?")
        browser.wait(DONE.format(1))
        assert browser.run(SAID.format(0))
        browser.open(server.url + "/")
        browser.wait("document.getElementById('name').textContent === 'demo'")
        assert not browser.run("document.getElementById('door').open")
