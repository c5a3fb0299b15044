"""Combining methods, by name."""

from __future__ import annotations

from holdfast.core.methods import Entry, Table

COMBINERS = Table(
    "combining method",
    "holdfast.combiners",
    {
        "best-single": Entry("holdfast.ensemble.combine.votes:BestSingle", "the model that is best in training, alone"),
        "plurality": Entry("holdfast.ensemble.combine.votes:Plurality", "one vote a model; the best model breaks ties"),
        "accuracy-vote": Entry("holdfast.ensemble.combine.votes:AccuracyVote", "votes weighted by accuracy"),
        "log-odds-vote": Entry("holdfast.ensemble.combine.votes:LogOddsVote", "votes by log-odds of being right"),
        "caruana": Entry("holdfast.ensemble.combine.caruana:Caruana", "greedy ensemble selection with replacement"),
        "conditional-logit": Entry(
            "holdfast.ensemble.combine.logit:ConditionalLogit", "learned weights a model and a subject"
        ),
        "topla-weighted": Entry("holdfast.ensemble.combine.topla_weighted:ToplaWeighted", "LLM-TOPLA's network"),
        "medoid": Entry("holdfast.ensemble.combine.medoid:Medoid", "the text most like the others'"),
    },
)
"""Name -> class. Third parties add theirs through the entry-point group ``holdfast.combiners``."""

FUSERS = Table(
    "fusing method",
    "holdfast.fusers",
    {
        "topla-summary": Entry(
            "holdfast.ensemble.summary:ToplaSummary", "a model that reads all candidates and writes the answer"
        )
    },
)
"""Methods that write an answer of their own instead of choosing one; group ``holdfast.fusers``."""
