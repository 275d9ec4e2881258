"""The weights of S autoencoders of one shape are stacked here, and go through every product together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sae_models.normalisation import Normalisation
from sae_models.tensors import SAE, Config


class Weights(nn.Module):
    """The parameters are `W_enc` and `W_dec` [S, f, d], a row for each feature, `b_enc` [S, f], `b_dec` [S, d], and
    those that an architecture trains besides. Rows of `W_dec` have unit norm.

    Buffers: `rows_since_active` [S, f]; `threshold` [S], the running mean of BatchTopK's least latent kept; `unit` [],
    the rms norm of the normalised rows, in which penalties and bandwidths are given.
    """

    rows_since_active: Tensor
    threshold: Tensor
    unit: Tensor

    def __init__(
        self, stack: int, num_features: int, width: int, own: Sequence[str], compute: torch.dtype = torch.float32
    ) -> None:
        """Sets all weights to zero. own: names of what the architecture trains besides, each `[S, f]`. compute: the
        type of the products; weights stay float32."""
        super().__init__()
        self.compute = compute
        self.W_enc = nn.Parameter(torch.zeros(stack, num_features, width))
        self.W_dec = nn.Parameter(torch.zeros(stack, num_features, width))
        self.b_enc = nn.Parameter(torch.zeros(stack, num_features))
        self.b_dec = nn.Parameter(torch.zeros(stack, width))
        for name in own:
            self.register_parameter(name, nn.Parameter(torch.zeros(stack, num_features)))
        self.register_buffer("rows_since_active", torch.zeros(stack, num_features, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(stack))
        self.register_buffer("unit", torch.ones(()))
        self.dead: list[Tensor] = [torch.empty(0, dtype=torch.int64)] * stack
        """The numbers of the dead features of each autoencoder, when they were last listed."""

    def get_extra_state(self) -> list[Tensor]:
        """Returns `dead`, which goes into `state_dict`."""
        return self.dead

    def set_extra_state(self, state: list[Tensor]) -> None:
        """Takes `dead` out of a `state_dict`."""
        self.dead = state

    def effective_bias(self) -> Tensor:
        """Returns b_enc - W_enc b_dec, `[S, f]`: with it the encoder reads x where it would read x - b_dec."""
        return self.b_enc - (self.W_enc @ self.b_dec[:, :, None])[..., 0]

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Takes out of the decoder's gradient what points along each row: the step does not go into its length."""
        grad_sfd = self.W_dec.grad
        if grad_sfd is not None:
            grad_sfd.addcmul_(self.W_dec, (grad_sfd * self.W_dec).sum(-1, keepdim=True), value=-1)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Gives the decoder's rows unit norm again."""
        self.W_dec.div_(self.W_dec.norm(dim=-1, keepdim=True))

    @torch.no_grad()
    def inference_sae(
        self, s: int, config: Config, normalisation: Normalisation, *, rescale: bool, **more: Tensor
    ) -> SAE:
        """Returns autoencoder `s` for inference on raw rows, as the kind that `config` describes.

        more: weights that this kind has besides the four. rescale: as in `Normalisation.fold`.
        """
        weights = {
            "W_enc": self.W_enc[s].T.contiguous(),
            "b_enc": self.b_enc[s].clone(),
            "W_dec": self.W_dec[s].clone(),
            "b_dec": self.b_dec[s].clone(),
        }
        sae = config.sae()
        sae.load_state_dict(normalisation.fold(weights | more, rescale=rescale))
        return sae.to(self.W_dec.device).eval().requires_grad_(False)
