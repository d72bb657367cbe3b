"""Load on `serve.py`: requests a second and their 99th percentile with many clients, beside a bare CTranslate2 loop.

    python benchmarks/serve_load.py -model runs/mine                 # 1, 16 and 64 clients, 10 seconds each
    python benchmarks/serve_load.py -model runs/mine -soak 600       # 64 clients that are killed at random

The clients are tasks of this process, each with a connection of its own on the loopback: one text a request, one after
the other. The bare loop is CTranslate2 on the same conversion, flags, texts and number of threads in a process of its
own, in batches of as many rows as there are clients: tokenizer, `translate_batch`, texts, with nothing between.
`equal` is the share of answered texts that are those of `inference.py`, which predicts all rows before. The server, the
clients and everything else share the cores of the machine, while the bare loop has no clients: the milliseconds of CPU
that a request costs the server and the clients, and a row the bare loop, say what the cores were busy with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SAMPLE = ROOT / "samples" / "text_normalization" / "test.tsv"
KILL_SHARE = 0.1  # of the requests of a soak


@dataclass
class Tally:
    """What clients saw; `late` are seconds of every answered request."""

    late: list[float] = field(default_factory=list)
    wrong: int = 0
    killed: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-model", required=True)
    parser.add_argument("-data", default=str(SAMPLE), help="rows whose first column is the text")
    parser.add_argument("-rows", type=int, default=300)
    parser.add_argument("-seconds", type=float, default=10.0, help="at each number of clients")
    parser.add_argument("-clients", default="1,16,64")
    parser.add_argument("-engine", default="ctranslate2", choices=("ctranslate2", "torch"))
    parser.add_argument("-threads", type=int, default=1)
    parser.add_argument("-soak", type=float, default=0.0, help="seconds with clients that are killed; 0 = the table")
    parser.add_argument("-bare", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(*bare_rate(options))
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        texts, wanted = predicted(options, Path(folder))
        levels = [int(count) for count in options.clients.split(",")]
        bare = {count: bare_process(count) for count in (levels if options.engine == "ctranslate2" else ())}
        port = free_port()
        command = ["serve.py", "-model", options.model, "-engine", options.engine, "-port", str(port), "-gpus", "0"]
        with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL) as server:
            try:
                asyncio.run(measured(options, port, texts, wanted, levels, bare, server.pid))
            finally:
                server.terminate()
        print(f"the server ended with code {server.returncode}")


def predicted(options: argparse.Namespace, folder: Path) -> tuple[list[str], list[str]]:
    """The texts, and what inference.py predicts for them."""
    lines = Path(options.data).read_text(encoding="utf-8").splitlines()[: options.rows]
    texts = [line.split("\t")[0] for line in lines]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps({'source': text})}\n" for text in texts))
    command = ["inference.py", "-model", options.model, "-test_data", f"{folder}/rows.jsonl", "-gpus", "0"]
    command += ["-engine", options.engine, "-save_output", f"{folder}/out.jsonl"]
    subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    found = (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    return texts, [json.loads(line)["prediction"] for line in found]


def bare_process(rows: int) -> tuple[float, float]:
    """What `bare_rate` gives in batches of `rows`, in a process of its own."""
    command = [sys.executable, *sys.argv, "-bare", str(rows)]
    rate, busy = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    return float(rate), float(busy)


def bare_rate(options: argparse.Namespace) -> tuple[float, float]:
    """Rows a second of CTranslate2 alone, on the conversion that the engine made, and CPU milliseconds a row."""
    import ctranslate2
    from transformers import AutoTokenizer

    from checkpoints.model_paths import model_path
    from checkpoints.model_source import inference_models
    from config.flags.inference import DecodeFlags
    from generation.decoder import generation_config
    from generation.engines.conversion import VOCABULARY_FILE, cached_conversion

    (source,) = inference_models((options.model,), "", "", False)
    model, _ = source()
    tokenizer = AutoTokenizer.from_pretrained(model_path("-model", options.model))
    folder = cached_conversion(source.name, model, tokenizer, "float32")
    generation = generation_config(model, tokenizer, DecodeFlags(max_predict_length=512))
    tokens = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
    ids = {token: number for number, token in enumerate(tokens)}
    first = generation.forced_bos_token_id
    translator = ctranslate2.Translator(str(folder), "cpu", intra_threads=options.threads)
    lines = Path(options.data).read_text(encoding="utf-8").splitlines()[: options.rows]
    texts = [line.split("\t")[0] for line in lines]
    done, begun, busy = 0, 0.0, 0.0
    while not begun or time.monotonic() - begun < options.seconds:
        start = done % len(texts)
        batch = (texts + texts)[start : start + options.bare]
        sources = [[tokens[number] for number in row] for row in tokenizer(batch).input_ids]
        results = translator.translate_batch(
            sources,
            target_prefix=None if first is None else [[tokens[first]]] * len(batch),
            beam_size=1,
            max_input_length=0,
            max_decoding_length=generation.max_new_tokens,
            return_scores=True,
        )
        outputs = [[ids[token] for token in result.hypotheses[0]] for result in results]
        tokenizer.batch_decode(outputs, skip_special_tokens=True)
        if not begun:  # the first batch is for warming up
            begun, busy = time.monotonic(), time.process_time()
        done += len(batch)
    rows = done - options.bare
    return rows / (time.monotonic() - begun), 1000 * (time.process_time() - busy) / rows


async def measured(
    options: argparse.Namespace,
    port: int,
    texts: list[str],
    wanted: list[str],
    levels: list[int],
    bare: dict[int, tuple[float, float]],
    server: int,
) -> None:
    """Print the table, or what became of the soak."""
    while True:  # it listens before it has read the model
        with suppress(OSError, asyncio.IncompleteReadError):
            if (await asked(*await asyncio.open_connection("127.0.0.1", port), "warm"))[0] == 200:
                break
        await asyncio.sleep(0.1)
    before = megabytes(server)
    if options.soak:
        tally = await load(port, texts, wanted, 64, options.soak, KILL_SHARE)
        print(f"{options.soak:g} s, 64 clients: {len(tally.late):,} answers, {tally.killed:,} clients killed")
        print(f"wrong texts {tally.wrong}; other statuses {dict(tally.statuses)}")
        print(
            f"p99 {percentile(tally.late, 0.99):.0f} ms; server {before:.0f} MB before, {megabytes(server):.0f} after"
        )
        return
    print("| clients | requests/s | bare rows/s | ratio | CPU ms: server | clients | bare | p50 ms | p99 ms | equal |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for count in levels:
        busy = cpu_seconds(server), time.process_time()
        tally = await load(port, texts, wanted, count, options.seconds, 0.0)
        own, clients = cpu_seconds(server) - busy[0], time.process_time() - busy[1]
        rate, answers = len(tally.late) / options.seconds, max(1, len(tally.late))
        beside, alone = "- | -", "-"
        if count in bare:
            beside, alone = f"{bare[count][0]:.1f} | {rate / bare[count][0]:.2f}", f"{bare[count][1]:.2f}"
        cpu = f"{1000 * own / answers:.2f} | {1000 * clients / answers:.2f} | {alone}"
        late = f"{percentile(tally.late, 0.5):.0f} | {percentile(tally.late, 0.99):.0f}"
        equal = f"{100 * (1 - tally.wrong / answers):.2f} %"
        print(f"| {count} | {rate:.1f} | {beside} | {cpu} | {late} | {equal} |", flush=True)
        if tally.statuses:
            print(f"other statuses: {dict(tally.statuses)}")
    print(f"server: {before:.0f} MB before, {megabytes(server):.0f} MB after")


async def load(port: int, texts: list[str], wanted: list[str], clients: int, seconds: float, kill: float) -> Tally:
    """What that many clients saw in that time; a share of their requests is given up while it is answered."""
    tally, end = Tally(), time.monotonic() + seconds

    async def client(number: int) -> None:
        draw, row = random.Random(number), number * 7
        connection = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < end:
            row = (row + 1) % len(texts)
            begun = time.monotonic()
            if draw.random() < kill:
                connection[1].write(request(texts[row]))
                await asyncio.sleep(draw.random() * 0.2)
                connection[1].transport.abort()
                connection = await asyncio.open_connection("127.0.0.1", port)
                tally.killed += 1
                continue
            status, body = await asked(*connection, texts[row])
            if status != 200:
                tally.statuses[status] += 1
                continue
            tally.late.append(time.monotonic() - begun)
            tally.wrong += json.loads(body)["predictions"][0]["prediction"] != wanted[row]
        connection[1].close()

    await asyncio.gather(*map(client, range(clients)))
    return tally


def request(text: str) -> bytes:
    """One request of HTTP/1.1 that keeps the connection."""
    body = json.dumps({"text": text}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> tuple[int, bytes]:
    """Status and body of the answer."""
    writer.write(request(text))
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
    length = next(int(line.partition(":")[2]) for line in head if line.startswith("content-length"))
    return int(head[0].split()[1]), await reader.readexactly(length)


def percentile(values: list[float], share: float) -> float:
    """Milliseconds within which that share of the answers came."""
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def cpu_seconds(process: int) -> float:
    """CPU time that all threads of a process have had."""
    of_process = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, of_process[11:13])) / os.sysconf("SC_CLK_TCK")


def megabytes(process: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main()
