"""Activation stores as tests look at them."""

from sae_models.activation_store import ActivationStore


def read_all(store: ActivationStore) -> None:
    """Reads every row of a store, which compares each file with its hash."""
    for block in store.blocks:
        for _ in store.values_from(block, 0):
            pass
