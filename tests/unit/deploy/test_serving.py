"""The server without a socket: texts are those of inference.py, and what clients do wrong is told them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from config.flags.serve import ServeConfig, ServeFlags
from config.parser import parse_flags
from deploy.serving import answers
from deploy.serving.app import make_app
from deploy.serving.batcher import Batcher, Busy, Work
from deploy.serving.guard import Guard, is_known_host
from deploy.serving.listening import listen, token_of
from deploy.serving.models import Options, ServedModel, load_models, short_names
from generation.engines.base import Prediction
from metrics.uncertainty.conformal import AnswerRule, SetRule, Silence
from tests.cli.command import infer_ok
from utils.errors import UserError

BASE = "http://127.0.0.1:8000"


def loaded(folder: Path, *flags: str | Path) -> tuple[list[ServedModel], ServeFlags]:
    config, given, problems = parse_flags(ServeConfig, [*map(str, flags), "-gpus", "0"])
    assert problems == []
    return load_models(config, given, folder), config.serve


@contextmanager
def client_of(models: Sequence[Any], flags: ServeFlags = ServeFlags(), token: str = "") -> Iterator[TestClient]:  # noqa: B008
    app = make_app(models, flags, token)
    app.batcher.start()
    try:
        yield TestClient(app, base_url=BASE, raise_server_exceptions=False)
    finally:
        app.batcher.close()


@pytest.fixture(scope="module")
def labels(label_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server of label probabilities and words."""
    flags = ("-label_decoding", "score", "-highlight", "-max_rows", "50", "-max_body", "4096")
    with client_of(*loaded(tmp_path_factory.mktemp("labels"), "-model", label_run / "run", *flags)) as client:
        yield client


@pytest.fixture(scope="module")
def beams(copy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server of up to 4 beams and 3 outputs."""
    flags = ("-beam_size", "4", "-num_return", "3", "-max_predict_length", "6")
    with client_of(*loaded(tmp_path_factory.mktemp("beams"), "-model", copy_run / "run", *flags)) as client:
        yield client


# ---- answers


def predicted(run: Path, rows: Sequence[Mapping[str, Any]], folder: Path, *flags: str) -> list[dict[str, Any]]:
    """What inference.py writes for these rows."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paths = ("-test_data", folder / "rows.jsonl", "-save_output", folder / "out.jsonl")
    infer_ok("-model", run, *paths, "-gpus", 0, *flags)
    written = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: row[key] for key in row if key not in ("id", "source", "reference")} for row in written]


def without_cuts(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if not key.endswith("_cut")} for row in found]


def close(found: Any, wanted: Any) -> bool:
    """Whether texts are the same and numbers nearly, which other batches round otherwise."""
    if isinstance(wanted, float):
        return bool(found == pytest.approx(wanted, abs=1e-5))
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    return bool(found == wanted)


def test_answers_are_those_of_inference(labels: TestClient, label_run: Path, tmp_path: Path) -> None:
    texts = ["abcd", "", "  ", "좋은 영화 ab", "tab\\t\n", "d c b a", "\ufeffx", "a" * 300]
    rows = [{"document": text} for text in texts] + [{"document": 1.50}, {"document": True, "label": "0"}]
    wanted = predicted(label_run / "run", rows, tmp_path / "p", "-label_decoding", "score", "-highlight")
    body = {"rows": rows, "highlight": True}
    found = labels.post("/predict", json=body).json()
    assert found["model"] == "run"
    assert close(without_cuts(found["predictions"]), wanted)
    assert [row["source_cut"] for row in found["predictions"]] == [False] * 7 + [True] + [False] * 2


def test_beams_and_outputs_are_chosen_within_the_flags(beams: TestClient, copy_run: Path, tmp_path: Path) -> None:
    texts = ["abcd", "dcba", "", "bad", "cab" * 5]
    rows = [{"source": text} for text in texts]
    limits = ("-max_predict_length", "6")
    for number, (size, count) in enumerate(((4, 3), (1, 1))):
        flags = ("-beam_size", str(size), "-num_return", str(count), *limits)
        wanted = predicted(copy_run / "run", rows, tmp_path / str(number), *flags)
        found = beams.post("/predict", json={"texts": texts, "beam_size": size, "num_return": count}).json()
        assert close(without_cuts(found["predictions"]), wanted)
    assert len(beams.post("/predict", json={"text": "abc"}).json()["predictions"][0]["nbest"]) == 3


def test_label_sets_and_abstention_are_those_of_inference(label_run: Path, tmp_path: Path) -> None:
    """The rules are fitted on probabilities with six digits, as they are written: 1 - 4e-10 is a label of 1."""
    texts = ["abcd", "dcb", "", "9" * 300]
    asked = ("-calibrate", str(label_run / "train.tsv"), "-label_sets", "0.9", "-abstain", "0.2")
    flags = ("-label_decoding", "score", *asked)
    wanted = predicted(label_run / "run", [{"document": text} for text in texts], tmp_path / "p", *flags)
    models, settings = loaded(tmp_path, "-model", label_run / "run", *flags)
    with client_of(models, settings) as client:
        found = client.post("/predict", json={"texts": texts}).json()["predictions"]
    assert close(without_cuts(found), wanted)
    assert {"label_set", "abstained"} <= found[0].keys()
    sure = Prediction("긍정.", -0.12345678, label_probabilities=(4e-10, 1 - 4e-10))
    for least, above, label_set, answer in ((1.0, 0.9999999, ["긍정."], "긍정."), (1e-9, 1.0, ["긍정."], "")):
        models[0].silence = Silence(SetRule(0.9, 80, least), AnswerRule(0.2, 80, above))
        record = models[0].record([sure], Options(1, 1), source_cut=False)
        assert (record["label_set"], record["prediction"], record["abstained"]) == (label_set, answer, not answer)
        assert (record["score"], record["label_probabilities"]) == (-0.123457, {"부정.": 4e-10, "긍정.": 1.0})


def test_long_passages_are_read_in_the_windows_of_the_training(copy_run: Path, tmp_path: Path) -> None:
    """The last row has no room for its passage and is cut. The windows of a source count together."""
    model = tmp_path / "model"
    shutil.copytree(copy_run / "run" / "best", model)
    state = json.loads((model / "training_state.json").read_text())
    state["flags"] |= {"max_seq_length": 60, "doc_stride": 8}
    (model / "training_state.json").write_text(json.dumps(state))
    passages = ["abcd", "dcba abdc " * 12, "cab " * 40]
    rows = [{"question": "a?", "context": passage} for passage in passages]
    rows.append({"question": "b" * 50, "context": "abc"})
    flags = ("-task", "squad", "-beam_size", "2", "-max_predict_length", "6")
    models, settings = loaded(tmp_path, "-model", model, *flags, "-num_return", "2", "-max_source", "400")
    assert [len(windows) for windows in models[0].encoder(rows).sources] == [1, 5, 6, 1]
    with client_of(models, settings) as client:
        for count in ("1", "2"):
            wanted = predicted(model, rows, tmp_path / count, *flags, "-num_return", count)
            found = client.post("/predict", json={"rows": rows, "num_return": int(count)}).json()["predictions"]
            assert close(without_cuts(found), wanted)
            assert [row["source_cut"] for row in found] == [False, False, False, True]
        told = client.post("/predict", json={"rows": [{"question": "a?", "context": "abc " * 80}]})
    assert (told.status_code, told.json()["error"].partition(": ")[0]) == (400, "row 1")
    assert "probability" in found[0]


def test_labels_come_by_falling_probability(labels: TestClient) -> None:
    (found,) = labels.post("/labels", json={"text": "cab"}).json()["labels"]
    assert [label["label"] for label in found["label_probabilities"]] == ["부정.", "긍정."]
    assert sum(label["probability"] for label in found["label_probabilities"]) == pytest.approx(1)
    assert found["label_id"] == "0"


def test_the_models_are_described(labels: TestClient, beams: TestClient) -> None:
    (model,) = labels.get("/models").json()["models"]
    assert (model["columns"], model["labels"], model["highlight"]) == (["document"], ["부정.", "긍정."], True)
    (model,) = beams.get("/models").json()["models"]
    assert (model["columns"], model["beam_size"], model["num_return"]) == (
        ["source"],
        {"least": 1, "most": 4},
        {"least": 1, "most": 3},
    )
    schema = beams.get("/openapi.json").json()
    assert {"/predict", "/labels", "/models", "/health", "/metrics"} <= schema["paths"].keys()
    assert beams.get("/docs").status_code == 404  # its page would fetch scripts from the network


def test_ctranslate2_answers_with_the_beams_of_its_flags(copy_run: Path, tmp_path: Path) -> None:
    texts = ["abcd", "", "dcb"]
    flags = ("-engine", "ctranslate2", "-beam_size", "2", "-early_stopping")
    model = tmp_path / "best"  # the converted model is written beside it
    shutil.copytree(copy_run / "run" / "best", model)
    wanted = predicted(model, [{"source": text} for text in texts], tmp_path / "p", *flags)
    with client_of(*loaded(tmp_path, "-model", model, *flags)) as client:
        found = client.post("/predict", json={"texts": texts}).json()["predictions"]
        refused = client.post("/predict", json={"texts": texts, "beam_size": 1})
    assert close(without_cuts(found), wanted)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("beam_size 1: this server allows 2 to 2")


def test_several_models_answer_side_by_side(copy_run: Path, label_run: Path, tmp_path: Path) -> None:
    models = ("-model", copy_run / "run", "-model", label_run / "run" / "best")
    with client_of(*loaded(tmp_path, *models)) as client:
        names = [model["name"] for model in client.get("/models").json()["models"]]
        found = [client.post("/predict", json={"text": "abc", "model": name}).json() for name in names]
    assert names == [f"{copy_run.name}/run", f"{label_run.name}/run"]
    assert [answer["predictions"][0]["prediction"] for answer in found] == ["a", "긍정."]


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["/runs/a/best", "/runs/b"]) == ["a", "b"]
    assert short_names(["."]) == ["."]
    assert short_names(["x/a/best", "y/a/best"]) == ["x/a", "y/a"]
    assert short_names(["x/a/best", "x/a/last"]) == ["a/best", "a/last"]
    for again in ("x/a", "x/a/", "./x//a"):
        with pytest.raises(UserError, match="given twice"):
            short_names(["x/a", again])


# ---- what clients do wrong


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("{", 400, "the body is no JSON: "),
        ("[]", 400, "the body must be an object"),
        ("[" * 100_000, 413, "the body may have 4,096 bytes"),
        ("[" * 4000, 400, "the body is nested too deep"),
        ("{}", 400, "give one of text, texts and rows"),
        ('{"text": "a", "texts": ["b"]}', 400, "give one of text, texts and rows"),
        ('{"texts": []}', 400, "texts: there is no row"),
        ('{"text": {"a": 1}}', 400, "text: Input should be a valid string"),
        ('{"text": "a", "beams": 2}', 400, "beams: Extra inputs are not permitted"),
        ('{"text": "a", "beam_size": 9}', 400, "beam_size 9: this server allows 1 to 1"),
        ('{"text": "a", "num_return": 0}', 400, "num_return 0: this server allows 1 to 1"),
        (
            json.dumps({"texts": ["a b " * 251] * 2, "highlight": True}),
            400,
            "highlight: a request may have 1,000 words",
        ),
        ('{"text": "a", "model": "other"}', 404, "model 'other' is none of run"),
        ('{"rows": [{"document": "a"}, {"label": "0"}]}', 400, "row 2: missing column document"),
        ('{"rows": [{"document": ["a"]}]}', 400, "row 1: value is not text"),
        ('{"text": "\\ud800"}', 400, "row 1: lone surrogate"),
        (json.dumps({"texts": ["a"] * 51}), 413, "texts: 51 rows; a request may have 50"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(labels: TestClient, body: str, status: int, told: str) -> None:
    answer = labels.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"][: len(told)]) == (status, told)


def test_other_paths_methods_and_types_are_refused(labels: TestClient, beams: TestClient) -> None:
    assert labels.get("/predict").status_code == 405
    assert labels.get("/nothing").json() == {"error": "Not Found"}
    assert labels.post("/predict", content=b"\xff", headers={"Content-Type": "application/json"}).status_code == 400
    assert labels.post("/predict", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert beams.post("/labels", json={"text": "a"}).status_code == 409
    assert beams.post("/predict", json={"text": "a", "highlight": True}).status_code == 400


def test_a_source_without_end_is_refused(copy_run: Path, tmp_path: Path) -> None:
    """A model without positions would take any, and all memory with it."""
    flags = ("-max_source", "20", "-max_seq_length", "30")
    with client_of(*loaded(tmp_path, "-model", copy_run / "run", *flags)) as client:
        answer = client.post("/predict", json={"texts": ["a" * 10, "a" * 20, "a" * 99]})
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "row 2: 21 tokens; a source may have 20; row 3: 30 tokens; a source may have 20",
    )


def test_a_long_body_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks beyond the limit are dropped as they come; far beyond it no more are taken."""
    monkeypatch.setattr(answers, "DISCARDED", 5000)
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    headers = [(b"content-type", b"application/json")]
    request = answers.Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)
    with pytest.raises(answers.HTTPException, match="413"):
        asyncio.run(answers.read_body(request, 2000, 10.0))
    assert taken == 6


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    headers = [(b"content-type", b"application/json; charset=utf-8")]
    request = answers.Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)
    with pytest.raises(answers.HTTPException, match="408"):
        asyncio.run(answers.read_body(request, 2000, 0.01))


# ---- who may come in


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LOCALHOST:80", True),
        ("[::1]:8000", True),
        ("10.1.2.3:8000", True),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_a_name_that_was_bound_to_this_address_is_refused(host: str, known: bool) -> None:
    assert is_known_host(host, {"localhost"}) is known


def test_requests_of_other_sites_are_refused_and_answers_are_not_theirs(labels: TestClient) -> None:
    assert labels.get("/models", headers={"Host": "evil.example"}).status_code == 421
    assert labels.post("/predict", json={"text": "a"}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert labels.post("/predict", json={"text": "a"}, headers={"Origin": "null"}).status_code == 403
    answer = labels.post("/predict", json={"text": "a"}, headers={"Origin": BASE})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_a_token_opens_all_but_the_page_its_link_and_health() -> None:
    with client_of([Stub()], token="se-cret") as client:
        assert [client.get(path).status_code for path in ("/", "/health", "/openapi.json")] == [200] * 3
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "se-cret"}):
            assert client.get("/metrics", headers=given).status_code == 401
            assert client.post("/predict", json={"text": "a"}, headers=given).status_code == 401
        right = {"Authorization": "bearer se-cret"}
        assert client.post("/predict", json={"text": "a"}, headers=right).status_code == 200


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVE_TOKEN", "of-environment")
    (tmp_path / "token").write_text("of-file\n")
    (tmp_path / "empty").write_text("\n")
    assert (token_of(""), token_of(str(tmp_path / "token"))) == ("of-environment", "of-file")
    for name, told in (("empty", "the file is empty"), ("none", "cannot be read \\(No such file")):
        with pytest.raises(UserError, match=f"^-token_file .*{name}: {told}"):
            token_of(str(tmp_path / name))
    monkeypatch.setenv("SERVE_TOKEN", "비밀")
    with pytest.raises(UserError, match=r"^SERVE_TOKEN: a token is made of"):
        token_of("")


def test_a_port_in_use_is_told() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^-port {port}: it is in use at 127.0.0.1; "):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"^-host 203\.0\.113\.1 -port 1"):
        listen("203.0.113.1", 1)


# ---- the queue


class Stub:
    """A model that answers with the text and the number of rows decoded with it; it waits while `held` is clear."""

    def __init__(self, fails: str = "") -> None:
        self.name, self.fails, self.scores_labels = "stub", fails, False
        self.columns, self.fewest_beams = ("text",), 1
        self.encoder, self.batches, self.encoded = self, [], []
        self.limits = type("Limits", (), {"rows": 4})
        self.ready = type("Ready", (), {"config": ServeConfig()})
        self.held, self.begun = threading.Event(), threading.Event()
        self.held.set()

    def encode(self, rows: Sequence[Mapping[str, str]]) -> Any:
        if any(row["text"] == "bad" for row in rows):
            raise UserError("row 1: bad")
        texts = [row["text"] for row in rows]
        self.encoded.append("".join(texts))
        return type("Encoded", (), {"sources": [[text] for text in texts], "cut": [False] * len(rows), "languages": ()})

    def predict(self, row_ids: Sequence[int], sources: Sequence[str], *_: Any) -> list[str]:
        self.begun.set()
        assert self.held.wait(10)
        self.batches.append(list(zip(row_ids, sources, strict=True)))
        if self.fails in sources:
            raise ValueError("no memory at /secret/place")
        return list(sources)

    def record(self, windows: Sequence[str], options: Options, cut: bool) -> dict[str, Any]:
        return {"prediction": "".join(windows), "beams": options.beam_size, "cut": cut}


def submit(batcher: Batcher, model: Any, *texts: str, beams: int = 1) -> Any:
    return batcher.submit(Work(model, [{"text": text} for text in texts], Options(beams, 1)))


def batcher_of(rows: int = 4, most: int = 6, seconds: float = 0.0) -> Batcher:
    return Batcher(rows, most, seconds, lambda *_: None)


def texts_of(future: Any) -> list[str]:
    return [answer["prediction"] for answer in future.result(10)]


def test_what_waits_is_decoded_together_and_answered_apart() -> None:
    batcher, model = batcher_of(), Stub()
    futures = [submit(batcher, model, *texts) for texts in ("a", "bc", "d", "ef")]
    futures.insert(3, None)
    batcher.start()
    batcher.close()
    assert [texts_of(future) for future in futures if future] == [["a"], ["b", "c"], ["d"], ["e", "f"]]
    assert model.batches == [[(0, "a"), (0, "b"), (1, "c"), (0, "d")], [(0, "e"), (1, "f")]]
    assert model.encoded == ["abcd", "ef"]


def test_a_single_client_is_not_kept_waiting_for_others() -> None:
    """One request was answered before: one is waited for, and no minute for more."""
    batcher, model = batcher_of(seconds=60.0), Stub()
    batcher.start()
    assert texts_of(submit(batcher, model, *"abcd")) == ["a", "b", "c", "d"]
    assert texts_of(submit(batcher, model, "e")) == ["e"]
    batcher.close()


def test_other_options_are_decoded_apart() -> None:
    batcher, model = batcher_of(), Stub()
    futures = [submit(batcher, model, "a"), submit(batcher, model, "b", beams=2), submit(batcher, model, "c")]
    batcher.start()
    batcher.close()
    assert [future.result(0)[0]["beams"] for future in futures] == [1, 2, 1]
    assert model.batches == [[(0, "a"), (0, "c")], [(0, "b")]]


def test_a_full_queue_refuses_and_a_cancelled_request_is_not_decoded() -> None:
    batcher, model = batcher_of(), Stub()
    gone, kept = submit(batcher, model, "a", "b"), submit(batcher, model, "c", "d")
    with pytest.raises(Busy):
        submit(batcher, model, "e", "f", "g")
    assert gone.cancel()
    batcher.start()
    batcher.close()
    assert texts_of(kept) == ["c", "d"]
    assert model.batches == [[(0, "c"), (1, "d")]]
    with pytest.raises(Busy):
        submit(batcher, model, "h")


def test_a_request_larger_than_the_queue_is_taken_by_an_idle_server() -> None:
    batcher, model = batcher_of(most=2), Stub()
    batcher.start()
    assert texts_of(submit(batcher, model, *"abcdefg")) == list("abcdefg")
    batcher.close()


def test_a_bad_row_fails_its_own_request_only() -> None:
    batcher, model = batcher_of(), Stub()
    bad, good = submit(batcher, model, "bad"), submit(batcher, model, *"abc")
    batcher.start()
    batcher.close()
    assert texts_of(good) == ["a", "b", "c"]
    assert str(bad.exception(0)) == "row 1: bad"


def test_a_failure_is_told_the_log_and_not_the_client(capsys: pytest.CaptureFixture[str]) -> None:
    with client_of([Stub(fails="x")]) as client:
        answer = client.post("/predict", json={"text": "x"})
        assert (answer.status_code, answer.json()) == (500, {"error": "the model could not answer"})
        assert client.post("/predict", json={"text": "y"}).json()["predictions"][0]["prediction"] == "y"
        counted = client.get("/metrics").text
    assert "no memory at /secret/place" in capsys.readouterr().err
    assert 'serve_requests_total{path="/predict",status="500"} 1.0' in counted
    assert "serve_rows_total 1.0" in counted


def test_late_and_refused_requests_are_told_so() -> None:
    model = Stub()
    model.held.clear()
    with client_of([model], ServeFlags(timeout=0.2, max_queue=1)) as client:
        late = client.post("/predict", json={"text": "a"})  # being decoded
        assert (late.status_code, late.json()) == (504, {"error": "no answer within 0.2 seconds"})
        results = []
        waits = threading.Thread(target=lambda: results.append(client.post("/predict", json={"text": "b"})))
        waits.start()
        while not re.search("serve_waiting_rows 1.0", client.get("/metrics").text):
            pass
        refused = client.post("/predict", json={"text": "c"})
        waits.join()
        model.held.set()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert results[0].status_code == 504


@pytest.mark.parametrize(("leaves", "status", "unanswered"), [(True, 499, 0), (False, 503, 1)])
def test_a_client_that_goes_and_a_stop_that_does_not_wait_take_a_request_back(
    leaves: bool, status: int, unanswered: int
) -> None:
    model = Stub()
    model.held.clear()
    app: Guard = make_app([model], ServeFlags())  # type: ignore[list-item]
    app.batcher.start()
    held = submit(app.batcher, model, "held")
    assert model.begun.wait(10)

    async def request() -> list[dict[str, Any]]:
        body = json.dumps({"text": "gone"}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            if not leaves:
                asking.cancel()
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
        asking = asyncio.ensure_future(app(scope, receive, send))
        await asking
        return sent

    sent = asyncio.run(request())
    model.held.set()
    app.batcher.close()
    assert (sent[0]["status"], app.unanswered, texts_of(held)) == (status, unanswered, ["held"])
    assert model.batches == [[(0, "held")]]
