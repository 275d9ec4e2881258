"""Principal components of the updates in place of SAE features, as many of them (protocol §10).

The components are those of the case's own two traces, all cells and steps of a block: the best linear basis that these
images allow. What `sae` gains over it is due to its dictionary being sparse and learnt on other images.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from riebench.interventions import Intervention
from riebench.methods import Case
from riebench.transport import Transport, select_features, transport


class Components:
    """z = (x - mean) V^T, x_hat = z V + mean, with V the eigenvectors of the rows' covariance, largest first."""

    def __init__(self, rows_nd: torch.Tensor) -> None:
        self.mean = rows_nd.mean(dim=0)
        centred = (rows_nd - self.mean).double()
        values, vectors_df = torch.linalg.eigh(centred.T @ centred)
        kept = values > values[-1] * 1e-10  # rows span no more directions than there are
        self.components_fd = vectors_df[:, kept].T.flip(0).float().contiguous()
        self.num_features, self.width = self.components_fd.shape

    def encode(self, x_nd):
        return (x_nd - self.mean) @ self.components_fd.T

    def decode(self, z_nf):
        return self.decode_linear(z_nf) + self.mean

    def decode_linear(self, z_nf):
        return z_nf @ self.components_fd


@dataclass(frozen=True)
class PCA(Transport):
    k: int = 32
    """Components turned on, and as many off, in each block; over all blocks where pool is "all", as it is in
    reference mode."""
    pool: str = ""
    steps: str = "first"
    name: str = "pca"
    sites: str = "update"
    uses_sae: ClassVar[bool] = False

    def plan(self, case: Case) -> Intervention:
        components = {
            site: Components(torch.cat([side[site].permute(0, 2, 3, 1).flatten(0, 2) for side in _sides(case)]).float())
            for site in case.original
        }
        selected = select_features(case, components, k=self.k, pool=self.pool, steps=self.steps)
        return transport(case, components, selected, self)


def _sides(case: Case):
    return case.original, case.edited
