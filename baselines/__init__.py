"""The methods that every run compares with; each file is the example to copy for one's own. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from riebench.core.registry import Registry
from riebench.methods.method import Method

METHODS: Registry[Callable[..., Method]] = Registry("method", "riebench.methods")
for _name, _target, _summary in (
    ("noop", "baselines.noop:NoOp", "no change: the original image"),
    ("oracle-prompt", "baselines.oracle_prompt:OraclePrompt", "the edited prompt itself: the ceiling of the edit"),
    ("dense", "baselines.dense:Dense", "the whole update in place of selected features"),
    ("neurons", "baselines.neurons:Neurons", "feed-forward neurons in place of SAE features"),
    ("random", "baselines.random_features:RandomFeatures", "random SAE features, same count and injected norm"),
    ("sae", "baselines.sae:SAE", "SAE features turned on and off"),
    ("other-seed", "baselines.select_on:OtherSeed", "SAE features chosen on another seed's images"),
    ("mismatched", "baselines.select_on:Mismatched", "SAE features chosen for another edit"),
    ("text-selected", "baselines.text_selected:TextSelected", "SAE features chosen from the two prompts alone"),
    ("chosen", "baselines.chosen:Chosen", "SAE features of one's own choice, by number"),
    ("pca", "baselines.pca:PrincipalComponents", "principal components of the updates in place of SAE features"),
    ("region-means", "baselines.region_means:RegionMeans", "the difference of the regions' mean updates"),
    ("prompt-injection", "baselines.prompt_injection:PromptInjection", "the blocks read the edited prompt"),
    (
        "attention-patch",
        "baselines.attention_patch:AttentionPatch",
        "the blocks attend to the prompt as in the edited run",
    ),
):
    METHODS.add(_name, _target, summary=_summary)
