"""Flags of what a raw text is made into: source and target of a pretraining row. No torch import."""

from __future__ import annotations

import dataclasses

from config.flags.data import NOT_TRIED
from config.flags.retrieval.contrastive import FIXED_ROWS
from config.flags.run import SHARDED
from config.parser import flag

OBJECTIVES = ("span_corruption", "ul2", "infilling", "prefix_lm", "mlm", "encoder_mlm", "inverse_cloze")
NO_SPANS = {"objective=ul2|prefix_lm|mlm|encoder_mlm|inverse_cloze": "it chooses no length of spans"}
NO_TARGETS = {
    "objective=inverse_cloze": "nothing is written, and a row is one document",
    "objective=encoder_mlm": "the decoder writes nothing",
}
WITH_PAIRS = {"inverse_cloze_weight": "no row is a query and a passage"}
INFILLING = {"objective=infilling": "the others have no such noise"}


@dataclasses.dataclass(frozen=True)
class ObjectiveFlags:
    """Objective"""

    objective: str = flag(
        "span_corruption",
        "What is hidden in a text and asked for: span_corruption = T5's spans; ul2 = UL2's seven denoisers; infilling ="
        " BART's masks and sentences in another order, the whole text asked for; prefix_lm = the rest of the text;"
        " mlm = BERT's masks, the whole text asked for; encoder_mlm = BERT's masks, predicted by the encoder"
        " alone, the decoder not trained; inverse_cloze = a sentence, whose text is to be found by its vector, as in"
        " retrieval.",
        choices=OBJECTIVES,
        resume="optimizer",  # encoder_mlm and inverse_cloze do not train every parameter
    )
    noise_density: float = flag(
        0.0,
        "Share of the tokens (infilling: words) that is hidden; 0 = 0.15, infilling 0.3.",
        minimum=0.0,
        maximum=0.9,
        excludes={"objective=ul2|prefix_lm|inverse_cloze": "ul2 has its own, and the others hide no share"},
    )
    mean_span_length: float = flag(
        0.0,
        "Mean length of a hidden span in tokens (infilling: words); 0 = 3, of ByT5's bytes 20.",
        minimum=0.0,
        maximum=1000.0,
        excludes=NO_SPANS,
    )
    random_roll: bool = flag(
        False,
        "Turn each row's noise by a random number of places, so that its first token is hidden as often as its last;"
        " false = as T5 was trained, the last always and the first never.",
        excludes={"objective=infilling|prefix_lm|mlm|encoder_mlm|inverse_cloze": "it hides every place alike"},
    )
    mode_rates: tuple[str, ...] = flag(
        (),
        "How often UL2's modes R, X and S come, e.g. -mode_rates R:0.8 -mode_rates S:0.2; empty = each of the seven"
        " denoisers (2 R, 4 X, 1 S) equally often.",
        metavar="MODE:RATE",
        needs={"objective=ul2": "the others have no modes"},
    )
    random_masks: float = flag(
        0.1, "Share of the masks that is a random token instead.", minimum=0.0, maximum=1.0, needs=INFILLING
    )
    permute_sentences: float = flag(
        1.0,
        "Share of the sentences that change places in the source; 0 = none (KoBART).",
        minimum=0.0,
        maximum=1.0,
        needs=INFILLING,
    )
    sentence_order: float = flag(
        0.0,
        "Share of the rows that ask something else: whether two parts of a document stand in their order (SOP:"
        " 'sop: A </s> B', the answer is 0, or 1 = swapped); 0 = none.",
        minimum=0.0,
        maximum=0.9,
        excludes=NO_TARGETS,
    )
    pack_documents: bool = flag(
        False,
        "Keep the documents of a row apart: each has noise of its own, and attends to itself alone; false = a row is a"
        " cut of the corpus, whose documents see each other. For T5's family.",
        excludes={
            "objective=ul2|infilling": "it makes a short document longer than its text",
            **NO_TARGETS,
            "sentence_order": "its two parts see each other",
            "attention=fused": "its kernel has no masks for that; leave -attention plain",
        },
    )
    inverse_cloze_weight: float = flag(
        0.0,
        "Weight of a second loss, added to that of -objective: each row also gives a query and its passage, as with"
        " -objective inverse_cloze, and the queries of a step are to find their passages by vectors; 0 = none.",
        minimum=0.0,
        maximum=1000.0,
        excludes={
            "objective=inverse_cloze": "there it is the only loss",
            "batch_size=0": FIXED_ROWS,
            "max_tokens": FIXED_ROWS,
            "pack_documents": NOT_TRIED,
            "compile": NOT_TRIED,
            SHARDED: f"{NOT_TRIED}; give ddp",
        },
    )
    max_query_length: int = flag(
        64,
        "Longest query of -inverse_cloze_weight in tokens, prefix and special tokens included; a longer sentence is"
        " cut.",
        minimum=8,
        needs=WITH_PAIRS,
    )
    max_passage_length: int = flag(
        288,
        "Longest passage of -inverse_cloze_weight in tokens, prefix and special tokens included; of a longer row a part"
        " is taken.",
        minimum=8,
        needs=WITH_PAIRS,
    )
