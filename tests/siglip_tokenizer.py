"""The files of SigLIP 2's tokenizer, of a few words with the ids that they have in Gemma's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
WORDS = {"a": 235250, "▁photo": 2686, "▁of": 576, "▁a": 476, "▁cat": 4401}


def write_siglip_tokenizer(folder: Path, *, side: str = "right", template: str = "$A <eos>") -> None:
    """Writes tokenizer.json and what lies beside it.

    side: where its configuration says that texts are filled up. template: where it puts special tokens.
    """
    vocabulary, merges = SPECIAL | WORDS, []
    letters = sorted(set("".join(WORDS)) - {"a"})
    vocabulary |= {letter: 100 + i for i, letter in enumerate(letters)}
    for word in WORDS:
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], 1000 + len(merges))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges)), unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(SPECIAL.items()))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {f"{name.strip('<>')}_token": name for name in SPECIAL}
    words = {"tokenizer_class": "GemmaTokenizer", "padding_side": side, "model_max_length": 64, **special}
    words |= {"add_bos_token": "<bos>" in template, "add_eos_token": "<eos>" in template}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
