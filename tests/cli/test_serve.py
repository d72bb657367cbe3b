"""`serve.py` as a process: a stop finishes what it took, and what is wrong is told before a model is read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

from tests.cli.command import ROOT, Result, environment, run, run_and_read


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def fetched(port: int, path: str, content: Any = None) -> str:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def answer_to_head(port: int, length: int) -> bytes:
    """The first line of the answer to a request whose head has about that many bytes and no end."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * length)
        return client.makefile("rb").readline()


def test_a_stop_finishes_what_was_taken_though_the_model_has_gone(copy_run: Path, tmp_path: Path) -> None:
    """And the head of a request is bounded, also where the faster parser is installed, which has no limit."""
    shutil.copytree(copy_run / "run" / "best", tmp_path / "mine")
    (tmp_path / "httptools.py").write_text("raise RuntimeError('taken')")
    (tmp_path / "installed.py").write_text(f"import sys\n\nsys.path.insert(0, {str(tmp_path)!r})\n")
    port, answers, heads = free_port(), [], []

    def ask() -> None:
        answers.append(json.loads(fetched(port, "predict", {"texts": ["bad"] * 100})))

    def stop(process: int) -> None:
        shutil.rmtree(tmp_path / "mine")
        heads.append(answer_to_head(port, 20_000))
        asking = threading.Thread(target=ask)
        asking.start()
        while "serve_waiting_rows 100.0" not in fetched(port, "metrics"):
            assert asking.is_alive()
        os.kill(process, signal.SIGTERM)
        asking.join()

    threads = []

    def told(process: int, line: str) -> None:
        if line.startswith("listening at "):
            threads.append(threading.Thread(target=stop, args=(process,)))
            threads[-1].start()

    flags = ["-model", str(tmp_path / "mine"), "-port", str(port), "-batch_wait", "1000", "-gpus", "0"]
    flags += ["-user_code", str(tmp_path / "installed.py")]
    result = run_and_read(["serve.py", *flags], environment(), told)
    threads[0].join()
    assert (result.code, result.out.splitlines()[-1]) == (0, "stopped; every request that was taken is answered")
    assert [row["prediction"] for row in answers[0]["predictions"]] == ["b"] * 100
    assert heads == [b"HTTP/1.1 400 Bad Request\r\n"]


def serve(*flags: str | int) -> Result:
    return run(sys.executable, "serve.py", *map(str, flags))


def test_what_is_wrong_is_told_before_a_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = serve("-model", tmp_path, "-port", port)
    assert result.errors == [f"-port {port}: it is in use at 127.0.0.1; choose another, or stop what has it"]
    assert (result.code, result.out) == (2, "")
    result = serve("-port", 0, "-num_return", 2, "-gpus", 2, "-model", tmp_path / "none")
    assert result.code == 2
    assert [problem.partition(":")[0] for problem in result.errors] == [
        "-port 0",
        "-num_return 2",
        f"-model {tmp_path / 'none'}",
        "serve.py",
    ]


def test_missing_packages_are_named_with_their_command(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules |= dict.fromkeys(("fastapi", "uvicorn"))
import serve
from utils.errors import UserError
try:
    serve.main(["-model", {str(tmp_path)!r}])
except UserError as error:
    print(*error.problems[:2], sep="\\n")
"""
    assert run(sys.executable, "-c", code).out.splitlines() == [
        f"serve.py needs the package {name}, which is missing; install it: pip install {name}=={version}"
        for name, version in (("fastapi", "0.165.0"), ("uvicorn", "0.54.0"))
    ]
