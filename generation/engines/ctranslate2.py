"""Decoding with CTranslate2, with the meaning that the same options have in our own engine, and a check that it is so.

What its search does otherwise, seen in its sources (src/decoding.cc) and in outputs, and how it is dealt with here:

- Beam search ends for a row as soon as `beam_size` outputs have ended (`patience` 1): `early_stopping=True` of
  `transformers`. Its beams are the same at every step. Our default goes on while the best beam can still win, which it
  has no option for; a larger `patience` only comes near. So more than one beam needs `early_stopping`.
- The length that scores are divided by leaves the end token out unless that is asked for: `return_end_token`.
- It cuts sources at 1,024 tokens and forbids empty outputs unless told otherwise: `max_input_length` 0 and
  `min_decoding_length` 0. The latter does not count the end token, ours does.
- Rules (n-grams, repetition, minimum length) act on the logits, before they are normalised. The best token is the same,
  the sums of beams are not: rules go with one beam only. Scores are then those of a second, teacher-forced pass.
- Without a length penalty its beam search ends with the first beam that ends: the penalty is then 1e-12, which divides
  by 1.0.
- Right after a fixed first token (BART's `<s>`, mBART's language) it drops an empty output that is not the best, where
  ours keeps it among the ended ones. No option changes that; `notes` says so.
- A source of nothing but its start and end token is empty to it, and gets an empty output with the score 0, unread. An
  empty line is such a source: our engine decodes these few beforehand, and its outputs are given for them.
- The repetition penalty and 1-grams leave the start token out, ours as in `transformers` do not. Where that is also
  the end token (BART), outputs would differ.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from checkpoints.model_source import InferenceModel
from config.flags.inference import COMPUTE_TYPES, DecodeFlags
from generation.decoder import Decoder, Hypothesis, decode_texts, generation_config
from generation.engines.base import Prediction
from generation.engines.conversion import VOCABULARY_FILE, cached_conversion
from utils.console import tell
from utils.errors import RunError, UserError
from utils.json_files import read_json
from utils.libraries import require_package
from utils.padding import pad_sources

CUDA_LIBRARY = "libcublas.so.12"
PARITY_ROWS = 16
PARITY_TEXTS = ("a", "1, 2, 3", "The quick brown fox.", "가나다 라마바")
NO_LENGTH_PENALTY = 1e-12  # divides by 1.0; at 0 the search would end with the first beam that ends
SCORE_TOLERANCE = 1e-3  # of a length-normalised log-probability


def check_start_token(flags: DecodeFlags, start_token: int, end_token: int) -> None:
    """Raise `UserError` for rules that CTranslate2 applies otherwise where the start token is the end token."""
    rules = [("-repetition_penalty", flags.repetition_penalty)] if flags.repetition_penalty != 1.0 else []
    rules += [("-no_repeat_ngram_size", 1)] if flags.no_repeat_ngram_size == 1 else []
    if rules and start_token == end_token:
        raise UserError(
            f"{', '.join(f'{name} {value}' for name, value in rules)}: -engine ctranslate2 does not have this for a"
            " model that begins with its end token, as BART does; use -engine torch"
        )


def unread_sources(start_token: int, end_token: int) -> list[tuple[int, ...]]:
    """Token ids of the sources that CTranslate2 takes for empty and does not read."""
    return list(dict.fromkeys([(end_token,), (start_token,), (start_token, end_token)]))


def supported_compute_types(device: str, device_index: int = 0) -> list[str]:
    """The values of -compute_type that the device (cpu or cuda) calculates with."""
    package = require_package("ctranslate2", "-engine ctranslate2")
    return [name for name in COMPUTE_TYPES if name in package.get_supported_compute_types(device, device_index)]


def check_compute_type(compute_type: str, device: str, device_index: int = 0) -> None:
    """Raise `UserError` for a value of -compute_type that the device (cpu or cuda) does not calculate with.

    On a GPU also where the library is missing that CTranslate2 is linked with; PyTorch brings that of a later CUDA.
    """
    if device == "cuda":
        try:
            ctypes.CDLL(CUDA_LIBRARY)
        except OSError:
            raise UserError(
                f"-engine ctranslate2: {CUDA_LIBRARY} is not found, which it needs on a GPU: pip install"
                " nvidia-cublas-cu12, and name the folder nvidia/cublas/lib of it in LD_LIBRARY_PATH; or give -gpus 0,"
                " or -engine torch"
            ) from None
    supported = supported_compute_types(device, device_index)
    if compute_type not in supported:
        raise UserError(f"-compute_type {compute_type}: not on this {device}, which has {', '.join(supported)}")


class CTranslate2Engine:
    """Predictions for batches of encoded sources by a converted model.

    Args:
        folder: what `save_converted` wrote.
        generation: of the model and `flags`, by `generation_config`.
        compute_type: float32, int8, float16 or bfloat16.
        device: cpu or cuda; `device_index` is the GPU's number.
        threads: of a CPU; 0 = the library's choice.
        with_scores: whether predictions get scores; several outputs a row have them in any case.
        unread: the outputs, best first, of each of the `unread_sources`; without them these get an empty text.

    Raises:
        UserError: the package is missing, a rule that it does not have for this model, or a compute type that the
            device does not. What the flags alone show is refused before, by prediction/checks.py.
        RunError: the converted model cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        flags: DecodeFlags,
        generation: GenerationConfig,
        device: str = "cpu",
        device_index: int = 0,
        threads: int = 0,
        with_scores: bool = True,
        unread: Mapping[tuple[int, ...], Sequence[Hypothesis]] | None = None,
    ) -> None:
        package = require_package("ctranslate2", "-engine ctranslate2")
        self.start_token, self.end_token = generation.decoder_start_token_id, generation.eos_token_id
        check_start_token(flags, self.start_token, self.end_token)
        check_compute_type(flags.compute_type, device, device_index)
        self.tokenizer, self.flags = tokenizer, flags
        self.with_scores = with_scores or flags.num_return > 1
        self.unread = unread or {}
        self.first_token: int | None = generation.forced_bos_token_id
        self.max_length: int = generation.max_new_tokens
        self.tokens: list[str] = read_json(folder / VOCABULARY_FILE)
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        try:
            self.translator = package.Translator(
                str(folder), device, device_index=device_index, compute_type=flags.compute_type, intra_threads=threads
            )
        except (RuntimeError, ValueError) as error:
            raise RunError(f"{folder}: the converted model cannot be loaded: {error}; delete the folder") from error

    def __call__(
        self, row_ids: Sequence[int], sources: Sequence[np.ndarray], languages: Sequence[str] = ()
    ) -> list[Prediction]:
        """One prediction for each of the encoded sources; the best output, and the `num_return` best if several.

        Raises:
            RunError: CTranslate2 gave up, e.g. for want of memory.
        """
        del row_ids, languages  # nothing is drawn, and all begin alike
        return self._predictions(sources, self.with_scores)

    def notes(self) -> list[str]:
        """What makes outputs other than those of the torch engine with the same options, a sentence each."""
        if self.flags.beam_size == 1 or self.first_token is None:
            return []
        return [
            f"CTranslate2 drops empty outputs from the beams right after the fixed first token"
            f" {self.tokens[self.first_token]}: now and then a text is another than that of -engine torch"
        ]

    def check_parity(self, decoder: Decoder, sources: Sequence[np.ndarray], place: str = "-engine ctranslate2") -> str:
        """Compare the first rows with our own engine at float32; a sentence about the outcome.

        A row agrees when its score is within `SCORE_TOLERANCE` of ours; another text is a tie then, and rare.

        Args:
            decoder: of the same model and options, on the CPU or a GPU.
            sources: encoded; the first `PARITY_ROWS` are decoded twice.
            place: the flag that opens the message of an error.

        Raises:
            UserError: a row does not agree, or more than an eighth are ties, with compute type float32; the others
                round, and are only told of.
        """
        sources = sources[:PARITY_ROWS]
        pad, device = self.tokenizer.pad_token_id, decoder.model.device
        expected = [outputs[0] for outputs in decoder.decode(*pad_sources(sources, pad, device))]
        found = [Hypothesis(row.text, row.score or 0.0) for row in self._predictions(sources, with_scores=True)]
        pairs = list(zip(expected, found, strict=True))
        other = [row for row, (ours, theirs) in enumerate(pairs) if ours.text != theirs.text]
        wrong = [row for row, (ours, theirs) in enumerate(pairs) if abs(ours.score - theirs.score) > SCORE_TOLERANCE]
        if len(other) > len(pairs) // 8:
            wrong = wrong or other
        if wrong and self.flags.compute_type == "float32":
            ours, theirs = pairs[wrong[0]]
            raise UserError(
                f"{place}: the converted model decodes row {wrong[0]} otherwise than -engine torch, and is not used:"
                f" {theirs.text[:60]!r} (score {theirs.score:.4f}) for {ours.text[:60]!r} ({ours.score:.4f})"
            )
        same = len(pairs) - len(other)
        return (
            f"CTranslate2 ({self.flags.compute_type}): {same} of the first {len(sources)} texts are those of -engine"
            " torch"
        )

    def _predictions(self, sources: Sequence[np.ndarray], with_scores: bool) -> list[Prediction]:
        known = [self.unread.get(tuple(source.tolist())) for source in sources]
        rows = [self._tokens(source.tolist()) for source, own in zip(sources, known, strict=True) if own is None]
        found = self._search(rows, with_scores)
        texts = iter(decode_texts(self.tokenizer, [ids for outputs in found for ids, _ in outputs]))
        end = [self.end_token]
        read = iter([[Hypothesis(next(texts), score, ids[-1:] != end) for ids, score in outputs] for outputs in found])
        predictions = []
        for own in known:
            best = next(read) if own is None else own
            predictions.append(
                Prediction(
                    text=best[0].text,
                    score=best[0].score if with_scores else None,
                    nbest=tuple(best) if self.flags.num_return > 1 else (),
                    cut=best[0].cut,
                )
            )
        return predictions

    def _tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.tokens[number] for number in ids]

    def _search(self, rows: list[list[str]], with_scores: bool) -> list[list[tuple[list[int], float]]]:
        """The outputs of every source: ids without the start token, and scores (0 unless asked for)."""
        flags = self.flags
        rules_apply = flags.has_rules
        try:
            results = self.translator.translate_batch(
                rows,
                target_prefix=None if self.first_token is None else [self._tokens([self.first_token])] * len(rows),
                beam_size=flags.beam_size,
                num_hypotheses=flags.num_return,
                length_penalty=flags.length_penalty or NO_LENGTH_PENALTY,
                repetition_penalty=flags.repetition_penalty,
                no_repeat_ngram_size=flags.no_repeat_ngram_size,
                max_input_length=0,
                max_decoding_length=self.max_length,
                min_decoding_length=max(0, flags.min_predict_length - 1),
                return_end_token=True,
                return_scores=with_scores and not rules_apply,
            )
            outputs = [[[self.ids[token] for token in tokens] for tokens in result.hypotheses] for result in results]
            if not with_scores:
                return [[(ids, 0.0) for ids in of_row] for of_row in outputs]
            if rules_apply:
                best = self.scores(rows, [of_row[0] for of_row in outputs])
                return [[(of_row[0], score)] for of_row, score in zip(outputs, best, strict=True)]
        except RuntimeError as error:
            raise RunError(f"CTranslate2 stopped: {error}; if memory is short, a smaller -batch_size helps") from error
        return [list(zip(ids, result.scores, strict=True)) for ids, result in zip(outputs, results, strict=True)]

    def scores(self, rows: list[list[str]], outputs: Sequence[Sequence[int]]) -> list[float]:
        """The model's own log-probability of every output (ids with the end token, if it ended) over length ** penalty.

        A fixed first token counts 0.
        """
        ended = [list(ids[:-1]) if ids[-1] == self.end_token else list(ids) for ids in outputs]
        results = self.translator.score_batch(rows, [self._tokens(ids) for ids in ended], max_input_length=0)
        first = 0 if self.first_token is None else 1
        return [
            sum(result.log_probs[first : len(ids)]) / len(ids) ** self.flags.length_penalty
            for ids, result in zip(outputs, results, strict=True)
        ]


@dataclass(frozen=True)
class ConvertedModel:
    """A conversion on the disk and how it decodes; calling it loads it."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    flags: DecodeFlags
    generation: GenerationConfig
    with_scores: bool
    unread: Mapping[tuple[int, ...], Sequence[Hypothesis]]  # outputs of the sources that CTranslate2 does not read

    def __call__(self, device: torch.device) -> CTranslate2Engine:
        """The engine on that device, with as many threads as PyTorch has.

        Raises:
            UserError: options or a compute type that it has not.
        """
        return CTranslate2Engine(
            self.folder,
            self.tokenizer,
            self.flags,
            self.generation,
            device.type,
            device.index or 0,
            threads=torch.get_num_threads(),
            with_scores=self.with_scores,
            unread=self.unread,
        )


def unread_outputs(
    decoder: Decoder, generation: GenerationConfig, device: torch.device
) -> dict[tuple[int, ...], list[Hypothesis]]:
    """What our own engine makes of the `unread_sources`."""
    sources = unread_sources(generation.decoder_start_token_id, generation.eos_token_id)
    outputs = decoder.decode(*pad_sources([np.array(ids) for ids in sources], generation.pad_token_id, device))
    return dict(zip(sources, outputs, strict=True))


def convert(
    model: InferenceModel,
    flags: DecodeFlags,
    with_scores: bool,
    examples: Sequence[np.ndarray],
    device: torch.device,
) -> ConvertedModel:
    """Convert the model, once for all runs, and compare what it makes of `examples` with our own engine.

    Raises:
        UserError: the package is missing, the architecture or an option is not supported, or outputs differ.
    """
    require_package("ctranslate2", "-engine ctranslate2")
    loaded, tokenizer = model()
    generation = generation_config(loaded, tokenizer, flags)
    check_start_token(flags, generation.decoder_start_token_id, generation.eos_token_id)
    folder = cached_conversion(model.name, loaded, tokenizer, flags.compute_type)
    decoder = Decoder(loaded.to(device), tokenizer, flags)
    unread = unread_outputs(decoder, generation, device)
    converted = ConvertedModel(folder, tokenizer, flags, generation, with_scores, unread)
    engine = converted(device)
    tell(*engine.notes())
    tell(engine.check_parity(decoder, examples))
    del engine, decoder, loaded  # they lie on the device, where the worker is about to load the converted model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return converted
