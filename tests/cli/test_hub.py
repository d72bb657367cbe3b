"""export.py -model_card and -push_to_hub, against a stand-in for the hub on the loopback."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

import export
from deploy.model_card import interval_text, read_scores, shown_value
from tests.cli.command import listing
from tests.cli.tiny import letter_rows
from tests.documents import blocks
from utils.errors import RunError, UserError

TOKEN = "hf_secret_of_the_test"


@dataclass
class Hub:
    """What the stand-in holds, and what it was asked for."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits_fail: bool = False

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and content for a request."""
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.private.setdefault(name, asked.get("visibility") == "private")
            return 200, {"url": f"{self.url}/{name}", "name": name}
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if name not in self.private:
            return 404, {"error": "Repository not found"}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return 200, {
                "files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            }
        if "/commit/" in path:
            if self.commits_fail:
                return 403, {"error": "no room left"}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.url}/{name}/commit/abc", "commitOid": "abc"}
        siblings = [{"rfilename": held} for held in self.files]
        return 200, {"id": name, "private": self.private[name], "siblings": siblings}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on the loopback with a user who is logged in."""
    held = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
            status, content = held.answer(self.path, body) if allowed else (401, {"error": "who are you?"})
            answer = json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    held.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", held.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield held
    server.shutdown()
    thread.join()
    server.server_close()


def main(*flags: str | Path) -> int:
    return export.main([str(flag) for flag in flags])


def test_the_card_is_one_of_the_hub_and_its_code_predicts(
    copy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for overwrite in ((), ("-overwrite",)):
        main("-model", copy_run / "run", "-save_path", tmp_path / "mine", "-model_card", "-license", "mit", *overwrite)
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.to_dict() == {"license": "mit", "library_name": "transformers", "tags": ["seq2seq-finetuner"]}
    assert "| train_data | train.tsv |" in card.text
    assert "Test rows: 30, decoded greedily." in card.text
    assert "| exact_match | 1.0000 | 0.8865 to 1.0000 |" in card.text
    assert "| -max_epoch | 6 |" in card.text
    assert str(copy_run.parent) not in card.text
    monkeypatch.chdir(tmp_path)
    rows = letter_rows(30, 2)[:4]
    (code,) = blocks(card.text, "python")
    code = code.replace('["a text, written as the sources of the training were"]', str([source for source, _ in rows]))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    assert printed.getvalue() == f"{[target for _, target in rows]}\n"


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"metrics": {"accuracy": 0.5}}',
        '{"scored_rows": 3, "metrics": {"accuracy": "half"}}',
        '{"scored_rows": "3", "metrics": {}}',
        '{"metrics": {}, "tasks": {"a": {"scored_rows": 3, "metrics": {}}, "b": {"scored_rows": 3}}}',
        '{"metrics": {}, "tasks": ["a"]}',
    ],
)
def test_incomplete_scores_are_told_in_a_line(content: str, tmp_path: Path) -> None:
    report = tmp_path / "test_report.json"
    report.write_text(content)
    with pytest.raises(UserError) as refused:
        read_scores(report)
    assert refused.value.problems == (
        f"-model_card: {report} is incomplete: scored_rows, a whole number, and metrics, names with numbers, are"
        " expected (of each task); without this file the card has no scores of the test rows",
    )


def test_torn_scores_end_the_export_with_their_file(copy_run: Path, tmp_path: Path) -> None:
    shutil.copytree(copy_run / "run" / "best", tmp_path / "run" / "best")
    report = tmp_path / "run" / "test_report.json"
    report.write_text('{"metrics": ')
    with pytest.raises(UserError, match=f"^-model_card: {report} is torn or no JSON "):
        main("-model", tmp_path / "run" / "best", "-save_path", tmp_path / "mine", "-model_card")
    assert not (tmp_path / "mine").exists()


def test_a_push_holds_the_files_of_the_export(
    hub: Hub, copy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    main("-model", copy_run / "run", "-save_path", folder, "-push_to_hub", "letters")
    assert hub.private == {"me/letters": True}
    assert hub.files == {name: (folder / name).read_bytes() for name in listing(folder)}
    assert b'from_pretrained("me/letters")' in hub.files["README.md"]
    assert TOKEN.encode() not in b"".join(hub.files.values())
    assert capsys.readouterr().out.splitlines()[-1] == f"pushed (private): {hub.url}/me/letters"
    hub.files["adapter_config.json"] = b"{}"  # of an adapter that was pushed before: readers would look for its base
    main("-model", copy_run / "run", "-save_path", folder, "-push_to_hub", "letters", "-overwrite")
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"pushed (private): {hub.url}/me/letters",
        "it still holds files that this export has not; delete those of an earlier one: adapter_config.json",
    ]
    with pytest.raises(UserError, match="me/letters is there and private; leave -public out"):
        main("-model", copy_run / "run", "-save_path", tmp_path / "other", "-push_to_hub", "me/letters", "-public")
    hub.private["us/open"] = False
    with pytest.raises(UserError, match="us/open is there and public; give -public"):
        main("-model", copy_run / "run", "-save_path", tmp_path / "other", "-push_to_hub", "us/open")
    assert not (tmp_path / "other").exists()


def test_a_push_that_fails_leaves_the_folder_and_says_how_to_go_on(hub: Hub, copy_run: Path, tmp_path: Path) -> None:
    hub.commits_fail = True
    folder = tmp_path / "mine"
    with pytest.raises(RunError) as error:
        main("-model", copy_run / "run", "-save_path", folder, "-push_to_hub", "letters")
    assert str(error.value).endswith(
        f"{folder} is whole, and this pushes it: hf upload me/letters {folder} . --private"
    )
    assert TOKEN not in str(error.value)
    assert {"README.md", "export.json", "model.safetensors"} <= set(listing(folder))


def test_no_push_without_the_hub_a_login_or_a_name(
    hub: Hub, copy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(name: str = "letters") -> str:
        with pytest.raises(UserError) as error:
            main("-model", copy_run / "run", "-save_path", tmp_path / "mine", "-push_to_hub", name)
        (problem,) = error.value.problems
        assert not (tmp_path / "mine").exists()
        return problem

    assert refusal("a/b/c").startswith("-push_to_hub a/b/c: Repo id must be")
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    assert refusal().startswith(f"-push_to_hub letters: asking {hub.url} failed: ")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "no login at the hub; log in with `hf auth login`" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal() == "-push_to_hub letters: HF_HUB_OFFLINE is set; unset it to push, or give -model_card alone"
    with pytest.raises(UserError) as error:
        main("-model", copy_run / "run", "-license", "MIT License")
    assert error.value.problems == (
        "-license MIT License goes with -model_card or -push_to_hub",
        "-license MIT License: no identifier of the hub, such as apache-2.0, cc-by-4.0 or other",
    )


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train_data", ["data/a.tsv", "/home/me/b.tsv"], "a.tsv, b.tsv"),
        ("init_model", "google/byt5-small", "google/byt5-small"),
        ("init_model", "/home/my user/runs/best", "best"),
        ("config_path", "~/bart.json", "bart.json"),
        ("teacher", "one=/home/me/a,two=/home/me/b", "one=a,two=b"),
        ("input_template", "{{ a }}/{{ b }}", "{{ a }}/{{ b }}"),
        ("learning_rate", 0.001, "0.001"),
    ],
)
def test_of_a_path_the_name_alone_is_told(key: str, value: Any, told: str) -> None:
    assert shown_value(key, value) == told


def test_the_interval_is_wilsons() -> None:
    assert interval_text("accuracy", 0.9, 100) == "0.8256 to 0.9448"
    assert interval_text("macro_f1", 0.9, 100) == ""
