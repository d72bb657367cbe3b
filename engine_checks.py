"""Which flags go with which engine, and whether the package of CTranslate2 is there; no torch."""

from __future__ import annotations

import importlib.util

from config.flags import CTRANSLATE2_INSTALL, DecodeFlags, InferenceConfig

RULE_FLAGS = ("no_repeat_ngram_size", "min_predict_length", "repetition_penalty")  # change the model's own scores


def check_engine_flags(config: InferenceConfig, given: frozenset[str], problems: list[str]) -> None:
    """Problems of -engine with the other flags, appended to `problems`."""
    decode, precision = config.decode, config.device.float_precision
    if decode.engine == "torch":
        if "compute_type" in given:
            problems.append(
                f"-compute_type {decode.compute_type} only works with -engine ctranslate2; give -float_precision with"
                " -engine torch"
            )
        return
    if importlib.util.find_spec("ctranslate2") is None:
        problems.append(f"-engine ctranslate2 needs the package ctranslate2, which is missing; {CTRANSLATE2_INSTALL}")
    if len(config.model.model) > 1:
        problems.append("-engine ctranslate2 decodes with one -model; several decode together with -engine torch")
    if precision != "32":
        problems.append(
            f"-float_precision {precision} only works with -engine torch; give -compute_type with ctranslate2"
        )
    problems.extend(_search_problems(decode))


def _search_problems(decode: DecodeFlags) -> list[str]:
    """What CTranslate2 cannot do with the very same meaning; models/ctranslate2_engine.py says why."""
    problems = []
    if decode.do_sample:
        problems.append("-do_sample only works with -engine torch, which draws with a seed for each row")
    if decode.beam_size > 1 and not decode.early_stopping:
        problems.append(
            f"-engine ctranslate2 ends the search of a row as soon as -beam_size {decode.beam_size} outputs have ended;"
            " ask for that with -early_stopping true (-engine torch then gives the same texts), or give -beam_size 1"
        )
    defaults = DecodeFlags()
    rules = [
        f"-{name} {getattr(decode, name)}" for name in RULE_FLAGS if getattr(decode, name) != getattr(defaults, name)
    ]
    if decode.beam_size > 1 and rules:
        problems.append(
            f"{', '.join(rules)}: -engine ctranslate2 has this with one beam only; with -beam_size {decode.beam_size}"
            " its scores would be others than those of -engine torch: give -beam_size 1, or -engine torch"
        )
    return problems
