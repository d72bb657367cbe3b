"""The page to try a model, in a browser: keyboard, narrow and wide, light and dark, Hangul, nothing from outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from config.flags.serve import ServeConfig
from config.parser import parse_flags
from deploy.serving.app import make_app
from deploy.serving.guard import Guard
from deploy.serving.listening import listen
from deploy.serving.models import load_models
from tests.browser import CHROMIUM, Page, browser_page

TOKEN = "se-cret"
ENTER = ("Enter", 13)


@pytest.fixture(scope="module")
def app(label_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    """Two models of the labels `부정.` and `긍정.`, behind a token."""
    models = ("-model", str(label_run / "run" / "best"), "-model", str(label_run / "run" / "last"))
    flags = ("-label_decoding", "score", "-highlight", "-gpus", "0")
    config, given, _ = parse_flags(ServeConfig, [*models, *flags])
    made = make_app(load_models(config, given, tmp_path_factory.mktemp("page")), config.serve, TOKEN)
    made.batcher.start()
    yield made
    made.batcher.close()


@pytest.fixture(scope="module")
def address(app: Guard) -> Iterator[str]:
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        running = threading.Thread(target=server.run, args=([listening],))
        running.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        running.join()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with browser_page(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def test_the_policy_lets_the_pages_own_script_run_and_nothing_else(app: Guard) -> None:
    answer = TestClient(app, base_url="http://127.0.0.1").get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "innerHTML" not in answer.text


def ask(page: Page, text: str) -> None:
    page.value("document.querySelector('textarea').value = ''; document.querySelector('textarea').focus()")
    page.write_text(text)
    page.press(*ENTER, control=True)
    page.wait("!document.getElementById('send').disabled && document.querySelector('article')")


@pytest.mark.parametrize(("width", "dark", "language"), [(400, True, "ko-KR"), (1400, False, "en-US")])
def test_a_text_is_answered_by_keyboard_alone(page: Page, address: str, width: int, dark: bool, language: str) -> None:
    page.open(address, width, dark, language)
    page.wait("!document.getElementById('token-box').hidden")
    page.problems.clear()  # the browser notes the 401
    page.value("document.getElementById('token').focus()")
    page.write_text(TOKEN)
    page.press(*ENTER, control=True)
    page.wait("document.querySelector('textarea')")
    ask(page, "abcd")
    ask(page, "지루한 <b>cd</b>")
    assert page.value("[...document.querySelectorAll('article .text')].map(text => text.textContent)") == ["부정."] * 2
    assert page.value("[...document.querySelectorAll('article h2')].map(text => text.textContent)") == [
        "run/best",
        "run/last",
    ]
    assert page.value("document.querySelectorAll('article')[0].querySelectorAll('.bar').length") == 2
    words = page.value(
        "[...document.querySelectorAll('article')[0].querySelectorAll('.words span')].map(w => w.textContent)"
    )
    assert words == ["지루한", "<b>cd</b>"]
    past = page.value("[...document.querySelectorAll('#history button')].map(button => button.textContent)")
    assert past == ["지루한 <b>cd</b> → 부정. | 부정.", "abcd → 긍정. | 긍정."]
    page.value("document.getElementById('past').open = true; document.querySelectorAll('#history button')[1].click()")
    assert page.value("document.querySelector('textarea').value") == "abcd"
    assert page.value("document.documentElement.scrollWidth") == width
    light = page.value("getComputedStyle(document.body).backgroundColor")
    assert light == ("rgb(16, 19, 23)" if dark else "rgb(245, 246, 248)")
    assert page.value("document.getElementById('send').textContent") == ("예측" if dark else "Predict")
    assert page.value("getComputedStyle(document.getElementById('beam-box')).display") == "none"  # nothing to choose
    assert page.problems == []
    assert {url for url in page.requested if not url.startswith((address, "data:"))} <= {"about:blank"}
