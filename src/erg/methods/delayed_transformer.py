"""The transformer that predicts y from x (Vaswani et al. 2017), as a delayed autoencoder of y."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.delayed import Delayed, Told
from erg.views.plan import WHOLE, Plan
from erg.views.types import View, Views


class DelayedTransformer(Method):
    """F(x, y) = mean_t -log softmax(W h_t)[y_t], h_t made of all of x and of y_1 ... y_{t-1}.

    Vaswani et al. 2017, as an energy (Canziani 2021): x, the first tokens of a sequence, goes
    through an encoder; y, the others, goes into an autoencoder that is told x by attention. The
    only thing that keeps it from copying y is a delay of one place: a conditional denoising
    autoencoder, whose corruption is the delay. The softmax at each place sums over what could
    stand there, so that F times the length of y is -log p(y | x): nothing has to be pushed up.

    Departs from the paper: norms before each layer and places that are learned; no dropout and no
    smoothing of labels; the mean is over the places of a sequence, then over the sequences that
    have a y; the decoder has embeddings of its own.
    Checked against: loops over places; torch's decoder layer; a sum over all y, which is 1.

    Args:
        given: number of the first tokens that are x; 0 for half of a sequence.
        depth: blocks behind the delay.
        heads: of the attention in each.
    """

    cell = Cell("latent-variable", "architectural", by="a delay, softmax over the vocabulary")

    def __init__(self, encoder: Encoder, *, given: int = 0, depth: int = 2, heads: int = 4) -> None:
        super().__init__(encoder)
        if not encoder.vocabulary:
            raise ValueError(
                f"DelayedTransformer needs an encoder of sequences of tokens, which {encoder.name} "
                "is not. Use the encoder sequence, on a text or an array of whole numbers [rows n]."
            )
        self.given = given or encoder.image_size // 2
        places = encoder.image_size - self.given
        if self.given < 1 or places < 1:
            raise ValueError(
                f"x and y share {encoder.image_size} tokens, and {self.given} of them are x. Leave "
                "at least one for each."
            )
        self.decoder = Delayed(encoder.vocabulary, places, encoder.dim, depth=depth, heads=heads)

    def plan(self) -> Plan:
        return Plan(main=(WHOLE,), pairs="itself", kind="tokens")

    def told(self, x: View, y: View) -> Told:
        """Logits of every place of y, and the weights of attention to y so far and to x."""
        first = x.data[:, : self.given]
        return self.decoder(y.data[:, self.given :], self.encoder.tokens(first), first >= 0)

    def by_place(self, x: View, y: View) -> Float[Tensor, "b t"]:
        """-log softmax(W h_t)[y_t] of every place; 0 behind the end of y."""
        wanted = y.data[:, self.given :]
        each = energy.of_class(self.told(x, y).logits.flatten(0, 1), wanted.clamp_min(0).flatten())
        return each.view_as(wanted) * (wanted >= 0)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        """0 where y is empty: of it nothing has to be predicted."""
        return energy.masked_mean(self.by_place(x, y), y.data[:, self.given :] >= 0)

    def loss(self, views: Views, progress: float) -> Loss:
        (view,) = views.need(1)
        each = self.energy(view, view)
        share = distributed.mean((view.data[:, self.given :] >= 0).any(dim=1).to(each.dtype))
        smallest = torch.finfo(each.dtype).tiny
        return Loss(pull={"prediction": distributed.mean(each) / share.clamp_min(smallest)})

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """The vector of x."""
        return self.encoder(data[:, : self.given])

    @torch.no_grad()
    def complete(self, x: View) -> Int[Tensor, "b t"]:
        """A y of low energy: at each place, in turn, the most probable token."""
        data = x.data.clone()
        for place in range(self.given, data.shape[1]):
            logits = self.told(x, x.with_data(data)).logits[:, place - self.given]
            data[:, place] = logits.argmax(dim=1)
        return data[:, self.given :]
