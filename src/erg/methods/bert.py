"""BERT, its masked tokens (Devlin et al. 2019)."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from erg import distributed, energy, noise
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import WHOLE, Masking, Plan
from erg.views.types import Mask, View, Views


class BERT(Method):
    """F(x, y) = mean over hidden places i of -log softmax(W t_i(x))[y_i], y_i the token at i.

    Devlin et al. 2019, section 3.1, task 1. x is a sequence some of whose tokens are hidden, y the
    whole of it, and t(x) what a transformer that sees all places makes of x: a denoising
    autoencoder of things that can be counted, so that it gives every token a probability, where
    one of pixels gives the mean of all that could be there. In F all that is hidden is blank. In
    `loss` 80 % of it is; another 10 % is a token drawn from the vocabulary, and 10 % stays as it
    was, so that what is seen has to be doubted, and what is not blank is made something of too.

    Departs from the paper: one sequence and no next one, no [CLS]: the encoder's vector is the mean
    of its tokens; W is a linear layer of its own, where the paper's is the embedding's behind a
    further layer; the mean is over the hidden places of a sequence, then over sequences; what is
    hidden is drawn anew in every epoch, where the paper drew ten times.
    Checked against: a loop over places; how often training shows what; a Markov chain of order 2,
    where it beats unigrams and bigrams.

    Args:
        ratio: share of the tokens of each sequence hidden, at least one of them.
        blank: share of these that training shows as blank.
        random: share of these in whose place training shows a token drawn from the vocabulary; the
            rest stay as they are.
    """

    cell = Cell("latent-variable", "architectural", by="hidden tokens, softmax over the vocabulary")

    def __init__(
        self,
        encoder: Encoder,
        *,
        ratio: float = 0.15,
        blank: float = 0.8,
        random: float = 0.1,
    ) -> None:
        super().__init__(encoder)
        if not encoder.vocabulary or encoder.grid is None:
            raise ValueError(
                f"BERT needs an encoder of sequences of tokens, which {encoder.name} is not. "
                "Use the encoder sequence, on a text or an array of whole numbers [rows n]."
            )
        if not 0 < ratio < 1:
            raise ValueError(
                f"ratio is the share of tokens that are hidden (got {ratio}). Choose one between 0 "
                "and 1."
            )
        if not (blank > 0 and random >= 0 and blank + random <= 1):
            raise ValueError(
                f"blank and random are shares of what is hidden (got {blank} and {random}). Choose "
                "blank above 0, and a sum of at most 1."
            )
        self.blank, self.random = blank, random
        self.masking = Masking(grid=encoder.grid, ratio=ratio)
        # the mask token, [MASK] in the paper
        self.unknown = nn.Parameter(torch.zeros(encoder.dim).normal_(std=0.02))
        self.head = nn.Linear(encoder.dim, encoder.vocabulary)

    def plan(self) -> Plan:
        return Plan(main=(replace(WHOLE, mask=self.masking),), pairs="itself", kind="tokens")

    def guess(
        self, x: View, y: View, places: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, " m"], Bool[Tensor, "b n"]]:
        """-log softmax(W t_i(x))[y_i] at some places, in order, and at which: those y has."""
        places = places & (y.data >= 0)
        tokens = self.encoder.masked(x.data, x.need_mask("BERT"), self.unknown)[1]  # [b n d]
        return energy.of_class(self.head(tokens[places]), y.data[places]), places

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.of_hidden(*self.guess(x, y, hidden_of(x)))

    def by_place(self, data: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """The energy of every token given all others of its sequence, each hidden in turn; 0 behind
        the end."""
        n = data.shape[1]
        mask = Mask(torch.eye(n, dtype=torch.bool, device=data.device)[:, None], (1, n))
        views = [View(tokens.expand(n, n), mask=mask) for tokens in data]
        return torch.stack([self.energy(view, view) for view in views])

    def shown(self, view: View, index: Int[Tensor, " b"], step: int) -> View:
        """The view as training shows it: what is hidden is blank, another token, or as it was."""
        mask, n = view.need_mask("BERT"), view.data.shape[1]
        hidden = hidden_of(view)
        chance = noise.uniform(index, n, purpose="shown", step=step)
        token = noise.uniform(index, n, purpose="token", step=step) * self.encoder.vocabulary
        blank = hidden & (chance < self.blank)
        other = hidden & ~blank & (chance < self.blank + self.random)
        data = torch.where(other, token.long(), view.data)
        return replace(view, data=data, mask=replace(mask, hidden=blank[:, None]))

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        shown = self.shown(view, views.index, views.step)
        each = energy.of_hidden(*self.guess(shown, view, hidden_of(view)))
        return Loss(pull={"prediction": distributed.mean(each)})


def hidden_of(view: View) -> Bool[Tensor, "b n"]:
    """Which tokens of each sequence are hidden."""
    return view.need_mask("BERT").hidden.any(dim=1)
