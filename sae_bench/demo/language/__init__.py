"""A small synthetic English with known ground truth: one generator per construction, labels for every text.

indirect.py   "when Mary and John went to the store , John gave the drink to Mary ."
cycles.py     "three days after monday comes thursday ."
personas.py   "Anna is kind . question : is Anna rude ? ( A ) yes ( B ) no answer : B ."
opinions.py   "the music of the play was superb . so the review is good ."
numbers.py    "three plus four is seven ."
prose.py      "the waves near every boat cross the deep sails .", and sentences in upper case
documents.py  puts paragraphs of them together; prompts.py makes counterbalanced prompts for measurements
"""

from sae_bench.demo.language.documents import Document, document
from sae_bench.demo.language.draw import Draw
from sae_bench.demo.language.prompts import (
    CyclePrompt,
    IndirectObjectPrompt,
    PersonaQuestion,
    cyclic_prompts,
    indirect_object_clusters,
    indirect_object_prompts,
    persona_questions,
    sentiment_sentences,
)
from sae_bench.demo.language.sentence import BOS, Sentence
from sae_bench.demo.language.vocabulary import case_pairs, vocabulary

__all__ = [
    "BOS",
    "CyclePrompt",
    "Document",
    "Draw",
    "IndirectObjectPrompt",
    "PersonaQuestion",
    "Sentence",
    "case_pairs",
    "cyclic_prompts",
    "document",
    "indirect_object_clusters",
    "indirect_object_prompts",
    "persona_questions",
    "sentiment_sentences",
    "vocabulary",
]
