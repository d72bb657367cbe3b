"""Single texts to token ids, one line a source: for rows that come from a pipe and not from a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from console import tell
from datamodules.escapes import unescape_cell
from datamodules.rendering import render
from datamodules.rows import text_array
from datamodules.splits import Encoder
from datamodules.token_encoding import check_limit, make_encoder
from errors import UserError
from task_utils import Template


class LineEncoder:
    """Encodes lines as a file with one column would be: escapes read, template filled, cut at the limit.

    Raises:
        UserError: the template reads a column besides the source, or the limit holds no token.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.escapes = encoder.data.tsv_escapes
        self.template = Template(encoder.task.input_template, "-input_template")
        others = sorted(self.template.variables - {"source"})
        if others:
            raise UserError(
                f"-test_data -: a line of standard input is the source, and -input_template reads {', '.join(others)}"
                " as well; give a file, or -input_template '{{ source }}' and lines that are filled in already"
            )
        self.tokens = make_encoder(encoder.tokenizer)
        self.limit = encoder.source_limit
        check_limit(self.tokens, "-max_seq_length", self.limit)

    def __call__(self, lines: Sequence[bytes]) -> list[np.ndarray]:
        """Token ids of each line (without its end); bytes that are no UTF-8 become U+FFFD."""
        texts = [line.removesuffix(b"\r").decode("utf-8", errors="replace") for line in lines]
        if self.escapes:
            texts = [unescape_cell(text)[0] for text in texts]
        rendered, failures = render(self.template, {"source": text_array(texts)}, len(texts))
        tell(*(f"-test_data -: an empty source: {reason}" for reason in failures.values()))
        tokens = self.tokens.encode(rendered, self.limit, False)
        return [tokens.row(row) for row in range(len(texts))]
