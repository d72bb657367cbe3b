"""The languages of tokenizers that put a token of it beside a text, as mBART's and NLLB's do. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from utils.errors import UserError, closest


def with_languages(tokenizer: Any, **languages: str) -> Any:
    """`tokenizer` set to the codes `src_lang` and `tgt_lang`; empty ones, and a tokenizer without codes, stay as they
    are."""
    for name, code in languages.items():
        if not code or not hasattr(tokenizer, name):
            continue
        flag = "-source_language" if name == "src_lang" else "-target_language"
        if code not in language_codes(tokenizer):
            raise UserError(f"{flag} {code}: {unknown_language(tokenizer, code)}")
        setattr(tokenizer, name, code)
    if getattr(tokenizer, "tgt_lang", "") is None:  # as the others take it by themselves, but not M2M100's
        tokenizer.tgt_lang = tokenizer.src_lang
    return tokenizer


def language_codes(tokenizer: Any) -> tuple[str, ...]:
    """The languages that `tokenizer` has a token for, as `src_lang` and `tgt_lang` name them; none where it has no
    such setting."""
    if not hasattr(tokenizer, "src_lang"):
        return ()
    tokens = getattr(tokenizer, "lang_code_to_token", None)  # M2M100's are __ko__
    return tuple(tokens or (token for token in tokenizer.all_special_tokens if "_" in token))


def unknown_language(tokenizer: Any, code: str) -> str:
    """What to say of a code that is none of `language_codes`."""
    codes = language_codes(tokenizer)
    asked = code.lower()  # may be a country, as in ko_KR
    near = [known for known in codes if known[:2].lower() == asked[:2] or asked in known.lower().split("_")]
    known = f" (did you mean {near[0]}?)" if near else closest(code, codes)
    return f"not a language code of this tokenizer{known}; known: {', '.join(codes[:60])}"


@contextmanager
def in_language(tokenizer: Any, name: str, code: str) -> Iterator[Any]:
    """`tokenizer` with another `src_lang` or `tgt_lang` (`name`) for a while."""
    before = getattr(tokenizer, name)
    setattr(tokenizer, name, code)
    try:
        yield tokenizer
    finally:
        setattr(tokenizer, name, before)
