"""The HTTP API: paths, what requests look like, and the errors that clients get."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from config.flags.serve import ServeFlags
from config.parser import version
from datamodules.readers.csv_json import JSON_DECODER
from deploy.serving.answers import ClientDisconnect, JsonAnswer, gone, read_body
from deploy.serving.batcher import Batcher, Busy, Work
from deploy.serving.guard import Guard
from deploy.serving.metrics import Metrics
from deploy.serving.models import Options, ServedModel
from deploy.serving.page import page
from utils.errors import RunError, UserError

RETRY_SECONDS = 1
GONE = 499  # nobody reads it
LOCAL = ("localhost",)
MOST_WORDS = 1000  # of a request whose words are looked at one by one


class PredictRequest(BaseModel):
    """One text, several, or rows with the columns of the task; and what is asked for besides."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(None, description="One text; for tasks that read one column.")
    texts: list[str] | None = Field(None, description="Several texts.")
    rows: list[dict[str, Any]] | None = Field(None, description="Rows with the columns that /models lists.")
    model: str = Field("", description="Name of a model, as /models lists them; empty = the first.")
    beam_size: int | None = Field(None, description="Beams, within -beam_size; default: -beam_size.")
    num_return: int | None = Field(None, description="Outputs of a row, within -num_return; default: -num_return.")
    highlight: bool = Field(False, description="Words of the source with their effect; needs -highlight.")


def make_app(models: Sequence[ServedModel], flags: ServeFlags, token: str = "") -> Guard:
    """The ASGI application; it answers while its `batcher` runs."""
    by_name = {model.name: model for model in models}
    batch = models[0].limits.rows
    batcher = Batcher(batch, flags.max_queue, flags.batch_wait / 1000, lambda rows, took: metrics.decoded(rows, took))
    metrics = Metrics(lambda: batcher.waiting_rows)
    app = FastAPI(title="seq2seq models", version=version().split()[-1], docs_url=None, redoc_url=None)

    async def answered(request: Request) -> tuple[ServedModel, list[dict[str, Any]]]:
        body = await read_body(request, flags.max_body, flags.timeout)
        asked = parsed(body)
        model = by_name.get(asked.model or models[0].name)
        if model is None:
            raise HTTPException(404, f"model {asked.model[:200]!r} is none of {', '.join(by_name)}")
        rows, options = rows_of(asked, model, flags.max_rows), options_of(asked, model)
        if options.highlight and sum(len(str(text).split()) for row in rows for text in row.values()) > MOST_WORDS:
            raise HTTPException(400, f"highlight: a request may have {MOST_WORDS:,} words")
        work = Work(model, rows, options)
        return model, await decoded(batcher, work, request, flags.timeout)

    @app.post("/predict", openapi_extra=JSON_BODY, summary="Predict one or many rows")
    async def predict(request: Request) -> Response:
        model, found = await answered(request)
        return JsonAnswer({"model": model.name, "predictions": found})

    @app.post("/labels", openapi_extra=JSON_BODY, summary="Labels by falling probability; needs -label_decoding score")
    async def labels(request: Request) -> Response:
        if not any(model.scores_labels for model in models):
            raise HTTPException(409, "label probabilities are computed where serve.py has -label_decoding score")
        model, found = await answered(request)
        return JsonAnswer({"model": model.name, "labels": [by_probability(answer) for answer in found]})

    shown = page()

    @app.get("/", include_in_schema=False)
    async def try_models() -> Response:
        return shown

    @app.get("/models", summary="The models: columns, labels, and ranges of the options")
    async def describe() -> Response:
        return JsonAnswer({"models": [model.describe() for model in models]})

    @app.get("/health", summary="200 while requests are answered")
    async def health() -> Response:
        alive = batcher.is_alive
        return JsonAnswer({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    @app.get("/metrics", summary="Figures for Prometheus")
    async def figures() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    add_errors(app)
    paths = ("/", "/predict", "/labels", "/models", "/health", "/metrics", "/openapi.json")
    hosts = {name.lower() for name in (*LOCAL, flags.host, *flags.allowed_host)}
    return Guard(app, batcher, hosts, token, metrics, paths)


JSON_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": PredictRequest.model_json_schema()}}}
}


def add_errors(app: FastAPI) -> None:
    """Every error is `{"error": TEXT}`, and nothing of the inside gets out."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, HTTPException)
        return JsonAnswer({"error": error.detail}, error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        del request, error  # the log of the server has it
        return JsonAnswer({"error": "the server failed; its log says why"}, 500)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: Exception) -> Response:
        del request, error
        return Response(status_code=GONE)


def parsed(body: bytes) -> PredictRequest:
    """The request in a body; numbers keep the digits that they are written with, as in a .jsonl file."""
    try:
        content = JSON_DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise HTTPException(400, "the body is not UTF-8") from None
    except RecursionError:
        raise HTTPException(400, "the body is nested too deep") from None
    except ValueError as error:
        raise HTTPException(400, f"the body is no JSON: {error}"[:300]) from None
    if not isinstance(content, dict):
        raise HTTPException(400, 'the body must be an object, for example {"text": "..."}')
    try:
        return PredictRequest.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))[:100]}: {one['msg']}" for one in error.errors()[:5]]
        raise HTTPException(400, "; ".join(problems)) from None


def rows_of(asked: PredictRequest, model: ServedModel, most: int) -> list[Mapping[str, Any]]:
    """The rows of a request, each with all columns that the task needs."""
    given = [name for name in ("text", "texts", "rows") if getattr(asked, name) is not None]
    if len(given) != 1:
        raise HTTPException(400, "give one of text, texts and rows")
    columns = model.encoder.columns
    texts = [asked.text] if asked.text is not None else asked.texts
    if texts is not None and len(columns) > 1:
        wanted = ", ".join(columns)
        raise HTTPException(400, f"{given[0]}: the task reads the columns {wanted}; give rows that have them")
    rows: list[Mapping[str, Any]] = [*(asked.rows or ())] if texts is None else [{columns[0]: text} for text in texts]
    if not rows:
        raise HTTPException(400, f"{given[0]}: there is no row")
    if len(rows) > most:
        raise HTTPException(413, f"{given[0]}: {len(rows):,} rows; a request may have {most:,}")
    for number, row in enumerate(rows if texts is None else [], 1):
        if missing := model.encoder.missing(row):
            raise HTTPException(400, f"row {number}: missing column {', '.join(missing)}")
    return rows


def options_of(asked: PredictRequest, model: ServedModel) -> Options:
    """The options of a request, which must be within those of the flags."""
    decode, label = model.ready.config.decode, model.ready.config.label
    beams = decode.beam_size if asked.beam_size is None else asked.beam_size
    if not model.fewest_beams <= beams <= decode.beam_size:
        allowed = f"{model.fewest_beams} to {decode.beam_size}"
        raise HTTPException(400, f"beam_size {beams}: this server allows {allowed}; serve.py -beam_size sets the most")
    most = min(decode.num_return, beams) if not decode.do_sample else decode.num_return
    count = most if asked.num_return is None else asked.num_return
    if not 1 <= count <= most:
        raise HTTPException(
            400, f"num_return {count}: this server allows 1 to {most}; serve.py -num_return sets the most"
        )
    if asked.highlight and not label.highlight:
        raise HTTPException(400, "highlight: serve.py has it with -label_decoding score -highlight only")
    return Options(beams, count, asked.highlight)


async def decoded(batcher: Batcher, work: Work, request: Request, seconds: float) -> list[dict[str, Any]]:
    """The answers of a request; it is taken back where its client goes or its time is over."""
    try:
        answers = asyncio.wrap_future(batcher.submit(work))
    except Busy:
        raise HTTPException(503, "too many rows wait; try again", {"Retry-After": str(RETRY_SECONDS)}) from None
    left = asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait((answers, left), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if answers.done():
            return answers.result()
        if left.done():
            raise ClientDisconnect
        raise HTTPException(504, f"no answer within {seconds:g} seconds")
    except UserError as error:
        raise HTTPException(400, "; ".join(error.problems[:5])) from None
    except RunError as error:
        raise HTTPException(500, str(error)) from None
    finally:
        left.cancel()
        answers.cancel()


def by_probability(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a row, the most probable first."""
    shares = sorted(answer["label_probabilities"].items(), key=lambda pair: -pair[1])
    labels = [{"label": label, "probability": share} for label, share in shares]
    return {**answer, "label_probabilities": labels}
