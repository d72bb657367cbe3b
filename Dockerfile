# Image of the tool: docker build -t seq2seq-finetuner --build-arg DEVICE=cpu .
# DEVICE=cpu takes torch without CUDA; DEVICE=cuda that of PyPI, with CUDA inside, for hosts with an NVIDIA driver.
FROM python:3.11.14-slim-bookworm

ARG DEVICE=cpu
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1

RUN useradd --create-home --uid 1000 tool
WORKDIR /app

# The packages change seldom, the code often: torch, the other requirements and the code are layers of their own.
COPY requirements.txt ./
RUN case "${DEVICE}" in \
      cpu) index=https://download.pytorch.org/whl/cpu ;; \
      cuda) index=https://pypi.org/simple ;; \
      *) echo "DEVICE=${DEVICE}: give cpu or cuda" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir --index-url "${index}" "$(grep '^torch==' requirements.txt)"
RUN pip install --no-cache-dir -r requirements.txt \
    fastapi==0.165.0 uvicorn==0.54.0 prometheus-client==0.26.0 ctranslate2==4.8.5 peft==0.21.2

COPY LICENSE pyproject.toml ./
COPY analysis/ analysis/
COPY checkpoints/ checkpoints/
COPY config/ config/
COPY configs/ configs/
COPY datamodules/ datamodules/
COPY deploy/ deploy/
COPY generation/ generation/
COPY metrics/ metrics/
COPY models/ models/
COPY postprocessors/ postprocessors/
COPY prediction/ prediction/
COPY reports/ reports/
COPY training/ training/
COPY utils/ utils/
COPY analyze.py embed.py export.py inference.py pretrain.py select_rows.py serve.py ./
COPY task_utils.py train.py train_tokenizer.py tune.py ./

USER 1000
EXPOSE 8000
ENTRYPOINT ["python"]
CMD ["serve.py", "-h"]
