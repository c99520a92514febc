"""The three models behind one small interface: `pursuit` (default), `topk` (untied, AuxK) and `relu`
(CytoSAE-compatible). All see tokens [B, d] and give dense codes [B, n] >= 0 and reconstructions [B, d].

`topk` and `relu` are baselines and import targets: they train locally only, their updates never leave a site.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import StudyError
from .pursuit import SparseCodes, gram_matrix, pursue, random_dictionary, unit_rows


class Model(Protocol):
    """A dictionary with a way to compute codes."""

    kind: str

    @property
    def dictionary(self) -> Tensor:
        """[n, d] float32 rows."""
        ...

    def codes(self, tokens: Tensor) -> Tensor:
        """[B, d] -> [B, n]."""
        ...

    def reconstruct(self, codes: Tensor) -> Tensor:
        """[B, n] -> [B, d]."""
        ...


class PursuitModel:
    """Dictionary and k; codes by matching pursuit. The Gram matrix is computed once."""

    kind = "pursuit"

    def __init__(self, dictionary: Tensor, k: int) -> None:
        self._dictionary, self.k = dictionary, k
        self._gram = gram_matrix(dictionary)

    @property
    def dictionary(self) -> Tensor:
        return self._dictionary

    def sparse(self, tokens: Tensor) -> SparseCodes:
        """Rows and values picked for tokens [B, d]."""
        return pursue(tokens, self._dictionary, self.k, self._gram)

    def codes(self, tokens: Tensor) -> Tensor:
        return self.sparse(tokens).dense(self._dictionary.shape[0])

    def reconstruct(self, codes: Tensor) -> Tensor:
        return codes @ self._dictionary


def random_start(d: int, n: int, seed: int) -> dict[str, Tensor]:
    """Random unit rows as decoder, their transpose as encoder, biases 0."""
    rows = random_dictionary(n, d, seed)
    return {
        "W_enc": rows.T.contiguous().clone(), "b_enc": torch.zeros(n), "W_dec": rows, "b_dec": torch.zeros(d)
    }  # fmt: skip


class _LinearSAE(nn.Module):
    """W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d] (names and layout of the published CytoSAE)."""

    def __init__(self, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(start["W_enc"])
        self.b_enc = nn.Parameter(start["b_enc"])
        self.W_dec = nn.Parameter(start["W_dec"])
        self.b_dec = nn.Parameter(start["b_dec"])

    @property
    def dictionary(self) -> Tensor:
        return self.W_dec.detach()

    def activations(self, tokens: Tensor) -> Tensor:
        """Before the sparsity rule: (x - b_dec) W_enc + b_enc, [B, n]."""
        return (tokens - self.b_dec) @ self.W_enc + self.b_enc

    def reconstruct(self, codes: Tensor) -> Tensor:
        return codes @ self.W_dec + self.b_dec

    @torch.no_grad()
    def after_step(self) -> None:
        """Rows of W_dec back to unit norm."""
        self.W_dec.copy_(unit_rows(self.W_dec))


class ReluModel(_LinearSAE):
    """f = ReLU((x - b_dec) W_enc + b_enc), x^ = f W_dec + b_dec (sparse_autoencoder.py:89-113 of CytoSAE)."""

    kind = "relu"

    def __init__(
        self, d: int, n: int, seed: int = 0, *, l1: float = 8e-5, start: dict[str, Tensor] | None = None
    ) -> None:
        super().__init__(start or random_start(d, n, seed))
        self.l1 = l1

    def codes(self, tokens: Tensor) -> Tensor:
        return torch.relu(self.activations(tokens))

    def loss(self, tokens: Tensor) -> Tensor:
        """Squared error plus l1 times the sum of codes, mean over the batch."""
        codes = self.codes(tokens)
        error = (self.reconstruct(codes) - tokens).pow(2).mean()
        return error + self.l1 * codes.sum(dim=1).mean()


class TopKModel(_LinearSAE):
    """Untied TopK with AuxK for dead latents (Gao et al. 2024, arXiv 2406.04093, section 3 and appendix A.2)."""

    kind = "topk"

    def __init__(
        self,
        d: int,
        n: int,
        seed: int = 0,
        *,
        k: int = 16,
        dead_after: int = 100,
        start: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(start or random_start(d, n, seed))
        self.k, self.dead_after = k, dead_after
        self.idle = torch.zeros(n, dtype=torch.int64)  # steps since a latent last fired

    def codes(self, tokens: Tensor) -> Tensor:
        return self._keep(torch.relu(self.activations(tokens)), self.k)

    @staticmethod
    def _keep(values: Tensor, k: int) -> Tensor:
        top = values.topk(min(k, values.shape[1]), dim=1)
        return torch.zeros_like(values).scatter(1, top.indices, top.values)

    def loss(self, tokens: Tensor) -> Tensor:
        """Squared error, plus 1/32 of the error left when dead latents explain the residual."""
        activations = torch.relu(self.activations(tokens))
        codes = self._keep(activations, self.k)
        residual = tokens - self.reconstruct(codes)
        self.idle = torch.where((codes > 0).any(dim=0), torch.zeros_like(self.idle), self.idle + 1)
        dead = self.idle > self.dead_after
        error = residual.pow(2).mean()
        if not dead.any():
            return error
        wanted = min(int(dead.sum()), tokens.shape[1] // 2)
        auxiliary = self._keep(activations * dead, wanted) @ self.W_dec
        return error + (residual.detach() - auxiliary).pow(2).mean() / 32


def train_baseline(
    model: ReluModel | TopKModel, tokens: Tensor, *, steps: int, batch: int, seed: int
) -> None:
    """Reference training of a baseline on local tokens [N, d], in place: Adam, lr 1e-3, unit decoder rows."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        choice = torch.randint(len(tokens), (batch,), generator=generator)
        optimiser.zero_grad()
        model.loss(tokens[choice]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        model.after_step()


def model_from_tensors(kind: str, tensors: dict[str, Tensor], k: int) -> Model:
    """A model from its named tensors; StudyError for missing or unfitting ones."""
    if kind == "pursuit":
        if set(tensors) != {"dictionary"} or tensors["dictionary"].ndim != 2:
            raise StudyError("Expected one tensor dictionary[n, d] for model=pursuit.")
        return PursuitModel(tensors["dictionary"], k)
    names = {"W_enc", "b_enc", "W_dec", "b_dec"}
    if set(tensors) != names or tensors["W_dec"].ndim != 2:
        raise StudyError(f"Expected tensors {sorted(names)} for model={kind}.")
    n, d = tensors["W_dec"].shape
    wanted = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    if any(tuple(tensors[name].shape) != shape for name, shape in wanted.items()):
        raise StudyError(f"Expected tensors that fit each other for model={kind}.")
    # The tensors themselves become the parameters: 49,152 concepts are not held twice.
    model = ReluModel(d, n, start=tensors) if kind == "relu" else TopKModel(d, n, k=k, start=tensors)
    return model.requires_grad_(False)


def tensors_of(model: Model) -> dict[str, Tensor]:
    """The model's named tensors, as `model_from_tensors` reads them."""
    if isinstance(model, _LinearSAE):
        return {name: value.detach().clone() for name, value in model.state_dict().items()}
    return {"dictionary": model.dictionary.clone()}
