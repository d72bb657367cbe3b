"""Small tokenizers and models built on the spot, for tests without network, each as a `from_pretrained` folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

KOREAN_CORPUS = (
    "이 영화는 정말 재미있었어요",
    "배우들의 연기가 너무 좋았다",
    "지루하고 돈이 아까운 영화",
    "다시 보고 싶은 최고의 영화입니다",
    "The movie was great, and I would watch it again.",
    "What a waste of time! 10 minutes were enough.",
)


def byte_tokenizer(folder: str | Path) -> Any:
    """The stock ByT5 tokenizer, saved in `folder`."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def unigram_tokenizer(folder: str | Path, corpus: Iterable[str] = KOREAN_CORPUS, vocab_size: int = 400) -> Any:
    """A T5 tokenizer (unigram, Rust) trained on `corpus`, saved in `folder`: `text </s>`, pad 0, 100 sentinels."""
    import json

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<pad>", "</s>", "<unk>"]
    core.train_from_iterator(
        corpus,
        trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=special, unk_token="<unk>", show_progress=False, shrinking_factor=0.75
        ),
    )
    pieces = [(piece, score) for piece, score in json.loads(core.to_str())["model"]["vocab"] if piece not in special]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
    tokenizer = T5Tokenizer(vocab=[*((piece, 0.0) for piece in special), *pieces, *sentinels])
    return _reloaded(tokenizer, folder)


def bart_tokenizer(folder: str | Path, corpus: Iterable[str] = KOREAN_CORPUS, vocab_size: int = 400) -> Any:
    """A byte-level BPE tokenizer (Rust) as BART has it, trained on `corpus`, saved in `folder`: `<s> text </s>`."""
    import json

    from transformers import BartTokenizer

    model = json.loads(_byte_level_bpe(corpus, vocab_size).to_str())["model"]
    tokenizer = BartTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    return _reloaded(tokenizer, folder)


def kobart_tokenizer(folder: str | Path, corpus: Iterable[str] = KOREAN_CORPUS, vocab_size: int = 400) -> Any:
    """A byte-level BPE tokenizer that adds no special tokens around the text, as KoBART's, saved in `folder`."""
    from transformers import PreTrainedTokenizerFast

    core = _byte_level_bpe(corpus, vocab_size)
    return _reloaded(PreTrainedTokenizerFast(tokenizer_object=core, **_BART_TOKENS), folder)


def mbart_tokenizer(folder: str | Path) -> Any:
    """A tokenizer of letters with the language tokens of mBART, saved in `folder`: `text </s> en_XX`."""
    from transformers import MBartTokenizer

    return _reloaded(MBartTokenizer(vocab=_letters()), folder)


def nllb_tokenizer(folder: str | Path) -> Any:
    """A tokenizer of letters with three language tokens of NLLB, saved in `folder`: `eng_Latn text </s>`."""
    from transformers import NllbTokenizer

    vocab = {piece: number for number, (piece, _) in enumerate(_letters())}
    codes = ["eng_Latn", "kor_Hang", "deu_Latn"]
    return _reloaded(NllbTokenizer(vocab=vocab, merges=[], extra_special_tokens=codes), folder)


def m2m100_tokenizer(folder: str | Path, corpus: Iterable[str] = KOREAN_CORPUS) -> Any:
    """A tokenizer of M2M100 (SentencePiece, Python), trained on `corpus`, saved in `folder`: `__ko__ text </s>`."""
    import json

    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
    from transformers import M2M100Tokenizer

    made = Path(folder, "made")
    made.mkdir()
    tokens = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
    SentencePieceTrainer.train(
        sentence_iterator=iter([*corpus] * 20),
        model_prefix=str(made / "spm"),
        vocab_size=150,
        hard_vocab_limit=False,
        minloglevel=2,
        **tokens,
    )
    pieces = SentencePieceProcessor(model_file=str(made / "spm.model"))
    vocabulary = {pieces.id_to_piece(number): number for number in range(len(pieces))}
    (made / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return _reloaded(M2M100Tokenizer(str(made / "vocab.json"), str(made / "spm.model")), folder)


def _letters() -> list[tuple[str, float]]:
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*specials, ("▁", -2.0), *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz가나다라마바사")]


_BART_TOKENS = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


def _byte_level_bpe(corpus: Iterable[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return core


def _reloaded(tokenizer: Any, folder: str | Path) -> Any:
    """The tokenizer as `AutoTokenizer` gives it from `folder`."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(str(folder))
    return AutoTokenizer.from_pretrained(str(folder))


def example_batch() -> dict[str, Any]:
    """Three rows of ids below 259: 9, 7 and 4 source tokens, 3, 5 and 5 target tokens."""
    import torch

    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(3, 259, (3, 5), generator=generator)
    labels[0, 3:] = -100
    return {
        "input_ids": torch.randint(3, 259, (3, 9), generator=generator),
        "attention_mask": torch.tensor([[1] * 9, [1] * 7 + [0] * 2, [1] * 4 + [0] * 5]),
        "labels": labels,
    }
