"""Small tokenizers of the true kinds, in the files that the true repositories have."""

from __future__ import annotations

import json
import string
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

MERGES = 2_000  # of CLIP's 48,894
#: Words that are whole in the small vocabularies; all others fall into letters.
WORDS = "a an the of in on with and red blue cat dog heart star house car tree man woman sky foreground background"


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def token(content: str, **other: bool) -> dict[str, object]:
    """A special token as transformers writes it."""
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} | other


def clip(folder: Path, pad: str = "<|endoftext|>", length: int = 77, whole: bool = False) -> int:
    """CLIP's own byte pairs, the first of its merges; returns the number of tokens.

    pad: which token fills up. whole: whether there is a tokenizer.json beside the vocabulary, its merges and settings.
    """
    full = SimpleTokenizer()
    merges = list(full.bpe_ranks)[:MERGES]
    words = [*list(full.encoder)[:512], *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    ids = {word: i for i, word in enumerate(words)}
    bos, eos = (token(word, normalized=True) for word in words[-2:])
    write_json(folder / "vocab.json", ids)
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    write_json(
        folder / "special_tokens_map.json", {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": eos}
    )
    added = {ids[word]: token(word, special=True) for word in (*words[-2:], pad)}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): value for i, value in sorted(added.items())},
        "bos_token": words[-2],
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": words[-1],
        "errors": "replace",
        "model_max_length": length,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": words[-1],
    }
    write_json(folder / "tokenizer_config.json", settings)
    if whole:
        from transformers import CLIPTokenizerFast

        CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)._tokenizer.save(str(folder / "tokenizer.json"))
    return len(words)


def bert(folder: Path) -> int:
    """BERT's word pieces, with its ids of special tokens and of ASCII; returns the number of tokens."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"[unused{i}]" for i in range(99, 994)]
    words += [char for char in map(chr, range(33, 127)) if not char.isupper()]  # from id 999 on: "." is 1012
    words += [f"##{char}" for char in string.ascii_lowercase + string.digits]
    words += [word for word in WORDS.split() if word not in words]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    special = {"cls": "[CLS]", "mask": "[MASK]", "pad": "[PAD]", "sep": "[SEP]", "unk": "[UNK]"}
    named = {f"{name}_token": word for name, word in special.items()}
    write_json(folder / "special_tokens_map.json", named)
    settings = {
        "added_tokens_decoder": {str(words.index(word)): token(word, special=True) for word in special.values()},
        "clean_up_tokenization_spaces": True,
        "do_basic_tokenize": True,
        "do_lower_case": True,
        "model_max_length": 512,
        "never_split": None,
        "processor_class": "GroundingDinoProcessor",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
    }
    write_json(folder / "tokenizer_config.json", settings | named)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(word, words.index(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(words)
