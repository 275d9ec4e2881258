"""How alike prompts are: by the words they share, and by the letters, which also sees other forms of a word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

_STOP = """
    a an the of in on at with and or by to from its his her their it that is are as for over under into onto inside
    beside behind across through near below above against among between around off out up down
"""
_LOOK = """
    photo photograph close-up wide film macro overhead painting oil watercolour gouache acrylic drawing pencil sketch
    ink crayon charcoal coloured felt-tip marker pastel 3d render low-poly clay glossy isometric studio stylised
    colourful illustration
"""
STOP_WORDS = frozenset(_STOP.split())
#: How a picture was made, in words that many prompts share and that say nothing of what it shows.
LOOK_WORDS = frozenset(_LOOK.split())
NGRAMS = (3, 4, 5)


def content_words(prompt: str) -> list[str]:
    """The words of a prompt that say what it shows."""
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", prompt.lower())
    return [word for word in words if word not in STOP_WORDS | LOOK_WORDS]


def jaccard(prompts: Sequence[str]) -> np.ndarray:
    """Jaccard similarity `[n, n]` of the sets of content words: shared words over all words of the two."""
    holds = _counts([set(content_words(prompt)) for prompt in prompts]).toarray()
    shared = holds @ holds.T
    sizes = holds.sum(axis=1)
    return shared / np.maximum(sizes[:, None] + sizes[None] - shared, 1)


def ngram_cosine(prompts: Sequence[str]) -> np.ndarray:
    """Cosine similarity `[n, n]` of the prompts embedded by their letters.

    A prompt's vector counts the runs of 3 to 5 letters within its content words (Damashek, "Gauging Similarity with
    n-Grams", 1995), as 1 + log(count), times log((1 + n) / (1 + prompts with that run)) + 1. It needs no weights, so it
    says the same on every machine; it knows nothing of meaning.
    """
    counts_of_grams = [Counter(gram for word in content_words(prompt) for gram in _grams(word)) for prompt in prompts]
    counts = _counts(counts_of_grams)
    counts.data = 1 + np.log(counts.data)
    num_prompts_with = np.bincount(counts.indices, minlength=counts.shape[1])
    weighted = counts.multiply(np.log((1 + len(prompts)) / (1 + num_prompts_with)) + 1).tocsr()
    norms = np.sqrt(weighted.multiply(weighted).sum(axis=1))
    unit = sparse.diags_array(1 / np.maximum(norms, 1e-12)) @ weighted
    return (unit @ unit.T).toarray()


def _grams(word: str) -> list[str]:
    padded = f" {word} "
    return [padded[start : start + n] for n in NGRAMS for start in range(len(padded) - n + 1)]


def _counts(bags: Sequence[Counter | set]) -> sparse.csr_array:
    """Counts `[bags, different items]`."""
    number = {item: i for i, item in enumerate(sorted({item for bag in bags for item in bag}))}
    counted = [Counter(bag) for bag in bags]
    rows = np.repeat(np.arange(len(bags)), [len(bag) for bag in counted])
    columns = [number[item] for bag in counted for item in bag]
    values = [float(count) for bag in counted for count in bag.values()]
    return sparse.csr_array((values, (rows, columns)), shape=(len(bags), len(number)))
