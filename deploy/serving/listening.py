"""What is settled before a model is loaded: the port and the token."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from config.flags.serve import TOKEN_VARIABLE
from utils.errors import UserError

WAITING = 2048  # connections that the system keeps until they are accepted


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens: clients that come while the models are loaded wait.

    Raises:
        UserError: the port is in use, or the address is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"-host {host}: {error.strerror}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(WAITING)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"-port {port}: it is in use at {host}; choose another, or stop what has it") from None
        raise UserError(f"-host {host} -port {port}: {error.strerror}") from None
    return listening


def token_of(path: str) -> str:
    """The token of -token_file, else of the environment; empty = none.

    Raises:
        UserError: a file that cannot be read, or a token that no header can hold.
    """
    place = f"-token_file {path}" if path else TOKEN_VARIABLE
    try:
        token = Path(path).read_text(encoding="utf-8") if path else os.environ.get(TOKEN_VARIABLE, "")
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    token = token.strip()
    if path and not token:
        raise UserError(f"{place}: the file is empty")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(f"{place}: a token is made of letters, digits and marks of ASCII")
    return token
