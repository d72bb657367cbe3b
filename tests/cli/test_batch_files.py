"""`-openai_batch`: every request of a batch file is answered in its place, with the same bytes however it is run."""

from __future__ import annotations

import json
import os
import signal
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tests.cli.command import environment, infer, infer_ok, run_forked
from tests.cli.test_inference_restart import start_and_stop
from tests.cli.tiny import letter_rows

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def request(number: int, content: Any, url: str = CHAT, **body: Any) -> str:
    messages = [{"role": "system", "content": "What is the first letter?"}, {"role": "user", "content": content}]
    source = {"messages": messages} if url == CHAT else {"prompt": content}
    wanted = {"model": "gpt-4o-mini", "temperature": 0, **source, **body}
    return json.dumps({"custom_id": f"요청-{number}", "method": "POST", "url": url, "body": wanted}, ensure_ascii=False)


def answer(line: str, model: Path, text: str, prompt_tokens: int, **changes: Any) -> str:
    """The line that OpenAI's API would write, but for its ids and times."""
    name, asked = blake2b(line.encode(), digest_size=16).hexdigest(), json.loads(line)
    chat = asked["url"] == CHAT
    message = {"message": {"role": "assistant", "content": text, "refusal": None}}
    tokens = len(text.encode()) + 1
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{name}",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": str(model),
        "choices": [{"index": 0, **(message if chat else {"text": text}), "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        },
    }
    response = {"status_code": 200, "request_id": f"req_{name}", "body": body, **changes}
    found = {"id": f"batch_req_{name}", "custom_id": asked["custom_id"], "response": response, "error": None}
    return json.dumps(found, ensure_ascii=False)


def refusal(problem: str) -> dict[str, Any]:
    error = {"message": problem, "type": "invalid_request_error", "param": None, "code": None}
    return {"status_code": 400, "body": {"error": error}}


def test_every_request_has_its_answer_in_its_place(copy_run: Path, tmp_path: Path) -> None:
    """From a file, and from standard input, where a line need be no request."""
    model, path = copy_run / "run" / "best", tmp_path / "requests.jsonl"
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    lines = [
        request(0, "cab"),
        request(1, [{"type": "text", "text": "bad"}]),
        request(2, [{"type": "text", "text": "bad"}, image]),
        request(3, "dab", COMPLETIONS, max_tokens=1),
        request(4, "abc", n=2),
    ]
    wanted = [
        answer(lines[0], model, "c", 4),
        answer(lines[1], model, "b", 4),
        answer(lines[2], model, "", 1, **refusal("request with content that is not text")),
        answer(lines[3], model, "d", 4),
        answer(lines[4], model, "", 1, **refusal("request for n other than 1, stream, logprobs or echo")),
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    flags = ("-model", model, "-openai_batch", "-gpus", 0, "-batch_size", 2)
    one = infer_ok(*flags, "-test_data", path, "-save_output", tmp_path / "one.jsonl")
    assert (tmp_path / "one.jsonl").read_text(encoding="utf-8").splitlines() == wanted
    assert one.out.splitlines()[0] == (
        "-openai_batch: not read, as the model and the flags decide: max_tokens (1 request), messages besides the last"
        " user turn (4 requests), temperature (5 requests)"
    )
    given = tmp_path / "lines"
    given.write_text(f"{lines[0]}\nbroken\n{lines[4]}", encoding="utf-8")
    piped = run_forked(["inference.py", *map(str, (*flags, "-test_data", "-"))], environment(), given=given)
    answers = piped.out.splitlines()
    assert (piped.code, answers[0], answers[2]) == (0, wanted[0], wanted[4])
    assert json.loads(answers[1]) == {
        "id": f"batch_req_{blake2b(b'broken', digest_size=16).hexdigest()}",
        "custom_id": None,
        "response": None,
        "error": {"code": "invalid_request", "message": "broken JSON"},
    }
    assert piped.err.splitlines()[-5:] == [
        "-test_data -: 2 requests with temperature (not read: the model and the flags decide), first at line 1, 3",
        "-test_data -: 2 requests with messages besides the last user turn (not read: the model and the flags decide),"
        " first at line 1, 3",
        "-test_data -: 1 lines that are no request (broken JSON), first at line 2",
        "-test_data -: 1 requests without an answer (request for n other than 1, stream, logprobs or echo), first at"
        " line 3",
        "3 lines predicted",
    ]


def test_a_killed_batch_goes_on_and_answers_with_labels(copy_run: Path, tmp_path: Path) -> None:
    model, path, output = copy_run / "run" / "best", tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    words = [word for word, _ in letter_rows(200, 3)]
    lines = [request(row, word) for row, word in enumerate(words)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    labels = ("-label_map", "a=ab,b=bb,c=cb,d=db", "-label_decoding", "score", "-batch_size", "4")
    flags = [*map(str, ("-model", model, "-openai_batch", "-test_data", path)), *labels]
    command = [*flags, "-save_output", str(output)]
    start_and_stop(command, tmp_path / "out.jsonl.parts", 5, signal.SIGKILL)
    done = infer_ok(*command, "-cpu_processes", 2)
    assert "of 200 rows were finished before" in done.out
    answers = [answer(line, model, f"{word[0]}b", len(word) + 1) for line, word in zip(lines, words, strict=True)]
    assert output.read_text(encoding="utf-8").splitlines() == answers


def test_requests_with_one_id_are_refused_before_the_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(f"{request(0, 'a')}\n{request(0, 'b')}\n", encoding="utf-8")
    told = infer("-model", tmp_path, "-openai_batch", "-test_data", path, "-save_output", tmp_path / "out.jsonl")
    assert (told.code, told.errors) == (2, [f"-test_data: {path}:2: its custom_id is that of {path}:1 too"])
    assert os.listdir(tmp_path) == ["requests.jsonl"]
