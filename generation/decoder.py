"""Decoding of batches into texts: greedy, beam search, sampling, and search among labels only.

The families of T5 and BART (models/architectures.py) are decoded by our own search; any other encoder-decoder, and one
whose decoder is not made of plain linear layers (adapters, quantised, sharded), by `generate` of `transformers`. Both
give the same texts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    ByT5Tokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from config.flags.inference import DecodeFlags
from generation.beam_search import FoundTokens, SearchOptions, beam_search
from generation.constraints import LabelTrie, TokenGraph
from generation.incremental.compiled import CompiledModel
from generation.incremental.decoder import StepModel, start
from generation.incremental.layers import without_autocast
from generation.incremental.weights import compute_dtype, supports
from generation.joined_labels import JoinedLabels
from generation.logits_processors import ScoreRules, force_first
from generation.passage_spans import PassageRule, PassageSpans, SpanGraph
from generation.sampling import sample
from generation.topk import require_finite
from models.adapters.virtual_tokens import with_virtual_tokens
from models.architectures import longest_output, shared_target_limit
from models.forward import decoder_start_token, source_inputs
from models.languages import in_language, language_codes
from models.special_tokens import encoded_target, example_target, fixed_first_token
from postprocessors.labels import LabelMap

BYTE_OFFSET = 3  # ByT5: id = byte + 3; 0 pad, 1 end, 2 unknown
BYTE_END = BYTE_OFFSET + 256
GREEDY = DecodeFlags()
LONGEST_TEXT = 512  # tokens of a prediction unless the flags say otherwise


@dataclass(frozen=True)
class Hypothesis:
    """An output: its text, its log-probability over length ** length_penalty, and whether the length limit cut it.

    `probability` is its share among the outputs of a row's windows, see prediction/windows.py; None elsewhere.
    """

    text: str
    score: float
    cut: bool = False
    probability: float | None = None


@dataclass(frozen=True)
class Beginning:
    """How outputs begin: the first decoder input, and the token that must follow, None for any; (rows,) ids where the
    rows differ."""

    start_token: int | Tensor
    first_token: int | Tensor | None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Beginning:
        """That of the targets of training in the language that the tokenizer is set to."""
        return cls(decoder_start_token(model, example_target(tokenizer)), fixed_first_token(tokenizer))

    @classmethod
    def of_rows(cls, rows: Sequence[Beginning], device: torch.device) -> Beginning:
        """Those of several rows together."""
        starts, firsts = [row.start_token for row in rows], [row.first_token for row in rows]
        first = None if firsts[0] is None else torch.tensor(firsts, device=device)
        return cls(torch.tensor(starts, device=device), first)


def generation_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    flags: DecodeFlags = GREEDY,
    others: Sequence[PreTrainedModel] = (),
) -> GenerationConfig:
    """Every generation field that matters, set: none is inherited from a checkpoint's own generation config.

    The start token, and a fixed first token (BART's `<s>`, mBART's language), are taken from an encoded target, so
    that decoding begins as training did. Outputs are as long as the model, and the others that decode with it, have
    positions for.
    """
    begin = Beginning.of(model, tokenizer)
    longest = longest_output(shared_target_limit(member.config for member in (model, *others)))
    wanted = flags.max_predict_length or LONGEST_TEXT
    return GenerationConfig(
        max_new_tokens=min(wanted, longest or wanted),
        min_length=flags.min_predict_length,
        num_beams=flags.beam_size,
        num_return_sequences=flags.num_return if flags.beam_size > 1 else 1,
        length_penalty=flags.length_penalty if flags.beam_size > 1 else 1.0,
        no_repeat_ngram_size=flags.no_repeat_ngram_size or None,
        repetition_penalty=float(flags.repetition_penalty),
        early_stopping=flags.early_stopping and flags.beam_size > 1,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=begin.start_token,
        forced_bos_token_id=begin.first_token,
        use_cache=True,
    )


class _FirstToken(LogitsProcessor):  # type: ignore[misc]
    """Forces the first token of every row on its way through `generate`."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == 1:
            force_first(scores, self.tokens)
        return scores


class _FiniteWatch(LogitsProcessor):  # type: ignore[misc]
    """Notices scores that are NaN or infinite on their way through `generate`."""

    def __init__(self, device: torch.device) -> None:
        self.broken = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 (the library's signature)
        self.broken |= ~(scores.amax() < float("inf"))  # NaN is larger than all, and not smaller than infinity
        return scores


class Decoder:
    """Texts for batches of encoded sources; the weights are those at the first call: make a new one after training on.

    Args:
        labels: of which the texts are; no other text comes out, and `max_length` is that of the longest.
        others: models with the same tokenizer whose log-probabilities are averaged with those of `model`.
        passage: where a source holds the passage of which an output must be a part; excludes what labels exclude.

    Raises:
        ValueError: labels, sampling, -compile or others for an architecture that only `generate` can decode; labels
            together with n-gram blocking, repetition penalty, minimum length or sampling; labels longer than the model
            can write, or that cannot be told apart or joined; others with another vocabulary or start token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        flags: DecodeFlags,
        labels: LabelMap | None = None,
        others: Sequence[PreTrainedModel] = (),
        passage: PassageRule | None = None,
    ) -> None:
        self.models = [model, *others]
        self.model = model
        self.tokenizer = tokenizer
        self.flags = flags
        self.config = generation_config(model, tokenizer, flags, others)
        self.own = all(supports(member) for member in self.models)
        self.allowed: LabelTrie | JoinedLabels | None = None
        if not self.own and (labels or passage or flags.do_sample or flags.compile or others):
            names = ", ".join(type(member).__name__ for member in self.models if not supports(member))
            raise ValueError(f"labels, sampling, ensembles and -compile are not supported for {names}")
        sizes = [member.config.vocab_size for member in self.models]
        if len(set(sizes)) > 1:
            raise ValueError(f"models that decode together need the same vocabulary; theirs have {sizes} tokens")
        starts = [decoder_start_token(member, example_target(tokenizer)) for member in self.models]
        if len(set(starts)) > 1:
            raise ValueError(f"models that decode together need the same start token; theirs are {starts}")
        if (labels or passage) and (flags.has_rules or flags.do_sample):
            raise ValueError("labels exclude no_repeat_ngram_size, min_length, repetition_penalty and sampling")
        if labels:
            self.allowed = self._allowed_texts(labels)
        self.spans = PassageSpans(tokenizer, passage, label_encoder(tokenizer)) if passage else None
        self._step_models: dict[torch.dtype, list[StepModel]] = {}
        self.compiled: dict[torch.dtype, list[CompiledModel]] = {}
        self._beginnings = {"": Beginning(self.config.decoder_start_token_id, self.config.forced_bos_token_id)}

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, languages: Sequence[str] = ()) -> list[str]:
        """The best text for each row of (batch, source_length) ids; raises as `decode` does."""
        found = self.decode(input_ids, attention_mask, None, self.flags.num_return > 1, languages)
        return [outputs[0].text for outputs in found]

    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        row_ids: Sequence[int] | None = None,
        with_scores: bool = True,
        languages: Sequence[str] = (),
    ) -> list[list[Hypothesis]]:
        """The `num_return` best outputs for each row of (batch, source_length) ids, best first.

        Fewer come back only where there are fewer labels. Samples depend on the options and on `row_ids`, by default
        the places in the batch. The scores of beam search are the `sequences_scores` of `transformers`; those of greedy
        search and of samples are the model's own, untouched by penalties and temperature; without `with_scores` they
        may be 0. `languages` are the codes of the rows' own target languages; without them all begin as the tokenizer
        is set.

        Raises:
            RunError: the model's scores are NaN or infinite.
        """
        begin = self._beginning(languages, input_ids.device)
        if not self.own:
            return self._generate(input_ids, attention_mask, begin, with_scores)
        row_ids = range(len(input_ids)) if row_ids is None else row_ids
        found = self._search(input_ids, attention_mask, begin, row_ids, with_scores)
        texts = iter(self._texts([output.ids for outputs in found for output in outputs]))
        end = self.config.eos_token_id
        return [
            [Hypothesis(next(texts), output.score, output.ids[-1:] != [end]) for output in outputs] for outputs in found
        ]

    def _beginning(self, languages: Sequence[str], device: torch.device) -> Beginning:
        if not any(languages) or not language_codes(self.tokenizer):
            return self._beginnings[""]
        for code in {*languages} - self._beginnings.keys():
            with in_language(self.tokenizer, "tgt_lang", code) as tokenizer:
                self._beginnings[code] = Beginning.of(self.model, tokenizer)
        return Beginning.of_rows([self._beginnings[code] for code in languages], device)

    @torch.inference_mode()
    def _search(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        begin: Beginning,
        row_ids: Sequence[int],
        with_scores: bool,
    ) -> list[list[FoundTokens]]:
        flags = self.flags
        rules = ScoreRules(
            end_token=self.config.eos_token_id,
            repetition_penalty=flags.repetition_penalty,
            no_repeat_ngram_size=flags.no_repeat_ngram_size,
            min_length=flags.min_predict_length,
            first_token=begin.first_token,
        )
        search = SearchOptions(
            start_token=begin.start_token,
            max_length=self.config.max_new_tokens,
            rules=rules,
            flags=flags,
            labels=self._graph(input_ids),
        )
        device = input_ids.device
        state = start(self._searched(), input_ids, attention_mask, flags.width)
        with without_autocast(device):
            if flags.beam_size > 1 or search.labels is not None:
                found = beam_search(state, len(input_ids), search, device)
                return [outputs[: flags.num_return] for outputs in found]
            return sample(state, list(row_ids), search, device, with_scores)

    def _graph(self, input_ids: Tensor) -> TokenGraph | SpanGraph | None:
        """What may follow, of labels for all rows, of passages for each."""
        if self.spans is not None:
            return self.spans.graph(input_ids.tolist(), input_ids.device)
        return None if self.allowed is None else self.allowed.graph.to(input_ids.device)

    def _texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Of outputs (a fixed first token and the end token included)."""
        if self.allowed is None:
            return decode_texts(self.tokenizer, rows)
        begin = 0 if self.config.forced_bos_token_id is None else 1
        return [self.allowed.text(ids[begin : ids.index(self.config.eos_token_id, begin)]) for ids in rows]

    def step_models(self) -> list[StepModel]:
        """The decoders that searches run on, in the precision in force."""
        dtype = compute_dtype(self.model)
        if dtype not in self._step_models:
            self._step_models[dtype] = [StepModel(model, dtype) for model in self.models]
        return self._step_models[dtype]

    def _searched(self) -> Sequence[StepModel | CompiledModel]:
        """The same, compiled where that is asked for."""
        models = self.step_models()
        if not self.flags.compile:
            return models
        dtype = models[0].dtype
        if dtype not in self.compiled:
            self.compiled[dtype] = [CompiledModel(model, self.flags.width) for model in models]
        return self.compiled[dtype]

    def release(self) -> None:
        """Hold the weights in the precision in force only, from now on: the models themselves can be used no more."""
        if self.own:
            for step_model, model in zip(self.step_models(), self.models, strict=True):
                step_model.release(model)

    @torch.inference_mode()
    def _generate(
        self, input_ids: Tensor, attention_mask: Tensor, begin: Beginning, with_scores: bool
    ) -> list[list[Hypothesis]]:
        """The same by `generate`; leaves the model's own generation config as it was. Scores of 0 unless asked for."""
        own, watch = self.model.generation_config, _FiniteWatch(input_ids.device)
        config, processors = self.config, LogitsProcessorList([watch])
        if isinstance(begin.start_token, Tensor):
            config = copy.deepcopy(config)
            config.decoder_start_token_id, config.forced_bos_token_id = begin.start_token.tolist(), None
        if isinstance(begin.first_token, Tensor):
            processors.insert(0, _FirstToken(begin.first_token))
        self.model.generation_config = config  # `generate` fills unset fields from it
        beams = self.flags.beam_size > 1
        try:
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=with_virtual_tokens(self.model, attention_mask),
                **source_inputs(self.model, attention_mask),
                generation_config=config,
                logits_processor=processors,
                output_scores=with_scores and beams,  # both are kept for every step
                output_logits=with_scores and not beams,
                return_dict_in_generate=True,
            )
            scores = self._generate_scores(output) if with_scores else [0.0] * len(output.sequences)
        finally:
            self.model.generation_config = own
        require_finite(watch.broken, compute_dtype(self.model))
        count = self.flags.num_return
        texts = decode_texts(self.tokenizer, output.sequences)
        cut = (~(output.sequences[:, 1:] == self.config.eos_token_id).any(1)).tolist()
        flat = [Hypothesis(*found) for found in zip(texts, scores, cut, strict=True)]
        return [flat[start : start + count] for start in range(0, len(flat), count)]

    def _generate_scores(self, output: Any) -> list[float]:
        if self.flags.beam_size > 1:
            return output.sequences_scores.tolist()  # type: ignore[no-any-return]
        log_probs = self.model.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)
        if self.config.forced_bos_token_id is not None:
            log_probs[:, 0] = 0.0
        written = output.sequences[:, 1:] != self.config.pad_token_id
        total = log_probs.masked_fill(~written, 0.0).sum(1)
        return (total / written.sum(1) ** self.flags.length_penalty).tolist()  # type: ignore[no-any-return]

    def _allowed_texts(self, labels: LabelMap) -> LabelTrie | JoinedLabels:
        allowed = allowed_texts(self.tokenizer, labels)
        longest = allowed.graph.longest
        self.config.max_new_tokens = longest + (self.config.forced_bos_token_id is not None)
        limit = shared_target_limit(member.config for member in self.models)
        if limit and self.config.max_new_tokens > limit:
            if isinstance(allowed, LabelTrie):
                raise ValueError(f"the longest label has {longest} tokens; the model writes at most {limit}")
            raise ValueError(
                f"all labels joined have {longest} tokens; the model writes at most {limit}, and a row may have all;"
                " use shorter label texts, or generate without labels"
            )
        return allowed


def label_trie(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> LabelTrie:
    """The tree of the token sequences of label texts, encoded as targets are, without a fixed first token."""
    return LabelTrie(labels, list(map(label_encoder(tokenizer), labels)), tokenizer.eos_token_id)


def allowed_texts(tokenizer: PreTrainedTokenizerBase, labels: LabelMap) -> LabelTrie | JoinedLabels:
    """The texts that may come out: one label alone or, with a separator, several joined."""
    if not labels.separator or len(labels.texts) == 1:
        return label_trie(tokenizer, labels.texts)
    return JoinedLabels(label_encoder(tokenizer), labels.texts, labels.separator, tokenizer.eos_token_id)


def label_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """What gives the ids of a target without a fixed first token and the end token."""
    begin = 0 if fixed_first_token(tokenizer) is None else 1

    def encode(text: str) -> list[int]:
        ids = encoded_target(tokenizer, text)
        return ids[begin : ids.index(tokenizer.eos_token_id)]

    return encode


def decode_texts(tokenizer: PreTrainedTokenizerBase, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
    """Texts of rows of ids without special tokens."""
    rows = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    if isinstance(tokenizer, ByT5Tokenizer):
        return [_decode_bytes(row) for row in rows]
    if languages := set(getattr(tokenizer, "lang_code_to_id", {}).values()):  # M2M100's need not be special tokens
        rows = [[token for token in row if token not in languages] for row in rows]
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts


def _decode_bytes(row: Sequence[int]) -> str:
    content = bytes(token - BYTE_OFFSET for token in row if BYTE_OFFSET <= token < BYTE_END)
    return content.decode("utf-8", errors="ignore")
