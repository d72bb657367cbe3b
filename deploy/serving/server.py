"""Runs the application until the process is asked to stop, and finishes what was taken."""

from __future__ import annotations

import logging
import resource
import socket

import uvicorn

from deploy.serving.guard import Guard

GRACE_SECONDS = 5  # besides the time that a request may take
MOST_FILES = 1 << 16  # that the process may have open: each client has a connection


def serve(app: Guard, listening: socket.socket, seconds: float) -> None:
    """Answer requests at a socket that listens; returns, or raises what the signal raises, after the last answer.

    Args:
        seconds: within which every request is answered.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # clients that speak no HTTP are no news
    config = uvicorn.Config(
        app,
        http="h11",  # httptools, taken by itself where it is installed, holds the head of a request at any length
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=round(seconds) + GRACE_SECONDS,
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    batcher = app.batcher
    batcher.start()
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        batcher.close()
