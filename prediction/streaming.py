"""Lines from standard input to predictions on standard output, in order, as they come.

A batch is whatever lines have come when the batch before is done, up to -batch_size: a single line that a person types
is answered at once, and a fast pipe fills whole batches.
"""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from generation.batch_limits import BatchLimits
from generation.engines.base import BatchPredictor, Prediction
from utils.console import give_up_if_full
from utils.errors import RunError, Terminated, UserError

BLOCK_BYTES = 1 << 16


def waiting_lines(descriptor: int, most: int) -> Iterator[list[bytes]]:
    """Lists of 1 to `most` lines, without line ends, as they come; an end without a newline is a line as well.

    A list is shorter than `most` only where no more input is waiting. Time grows with the bytes, however long a line.

    Raises:
        RunError: standard input cannot be read.
    """
    lines: deque[bytes] = deque()
    begun: list[bytes] = []  # the blocks so far of a line whose end has not come
    ended = False
    while True:
        while not ended and (not lines or (len(lines) < most and _has_more(descriptor))):
            try:
                block = os.read(descriptor, BLOCK_BYTES)
            except OSError as error:
                raise RunError(f"standard input cannot be read: {error.strerror}") from error
            ended = not block
            start, *following = block.split(b"\n")
            begun.append(start)
            if following or (ended and any(begun)):
                lines.append(b"".join(begun))
                lines.extend(following[:-1])
                begun = following[-1:]
        if not lines:
            return
        yield [lines.popleft() for _ in range(min(most, len(lines)))]


def _has_more(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def claim_standard_output() -> BinaryIO:
    """Standard output for predictions alone: everything that is printed from here on goes to standard error.

    Raises:
        UserError: there is no standard input to predict.
    """
    if sys.stdin is None:
        raise UserError("-test_data -: standard input is closed; write lines to it, as in `cat FILE | python ...`")
    sys.stdout.flush()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def stream(
    batches: Iterator[list[bytes]],
    encode: Callable[[Sequence[bytes]], list[np.ndarray]],
    predictor: BatchPredictor,
    line_of: Callable[[bytes, np.ndarray, Prediction], bytes],
    output: BinaryIO,
    limits: BatchLimits,
) -> int:
    """Predict batch after batch, write a line for each and flush; returns the number of lines.

    Args:
        batches: lines that are answered together; they are decoded in several batches where `limits` ask for it.
        line_of: what is written for a line, the token ids of its source, and its prediction.

    Raises:
        BrokenPipeError: nobody reads the output any more.
        RunError: the output cannot be written, because a disk is full.
    """
    count = 0
    for lines in batches:
        sources = encode(lines)
        found: dict[int, Prediction] = {}
        for rows in limits.cut(np.array([len(source) for source in sources])):
            numbers = rows.tolist()
            predictions = predictor([count + row for row in numbers], [sources[row] for row in numbers])
            found.update(zip(numbers, predictions, strict=True))
        try:
            output.write(b"".join(line_of(line, sources[row], found[row]) for row, line in enumerate(lines)))
            output.flush()
        except BrokenPipeError:
            raise
        except (KeyboardInterrupt, Terminated):
            give_up_if_full(output.fileno())  # else closing it would wait
            raise
        except OSError as error:
            with suppress(OSError):  # what it still holds goes
                output.close()
            raise RunError(f"standard output cannot be written: {error.strerror}; {count:,} lines were") from error
        count += len(lines)
    return count
