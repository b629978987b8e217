"""Residual latents: bits that name a word in each stage; the words add up to a point of a reduced space."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stochcl.encoders.latents import BEAM, PARALLEL
from stochcl.encoders.posteriors import BIT, POSTERIORS, Posterior, inside, straight_through
from stochcl.lazy import cached_property

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stochcl.encoders.config import EncoderConfig

GRID = 31
"""Integers, either way, in which a number of a word is held: they deflate to five bits, and lose nothing."""

_BLOCK = 256  # rows that are searched at a time: what they need stays in a core's cache
_MOST = 127  # integers either way of decoding tables


def signed_root(numbers: Tensor) -> Tensor:
    """Return the square root of numbers' sizes, with their signs."""
    return numbers.sign() * numbers.abs().sqrt()


def on_grid(numbers: Tensor, dim: int | None = None, grid: int | Tensor = GRID) -> Tensor:
    """Return numbers rounded so that decoding tables hold them as they are; of one scale, or one along ``dim``.

    ``grid`` is the integers either way, 1 to 127, that a number can be rounded to, or those of each number.
    """
    size = numbers.abs()
    largest = (size.amax() if dim is None else size.amax(dim, keepdim=True)).clamp(min=1e-12)
    integers = ((numbers / largest * grid).round() * (_MOST / grid)).round()
    return integers * (largest / _MOST)


class ReducedHead(nn.Module):
    """u = weight t(features + shift) - mean, in the reduced space of m numbers; t is a signed square root or nothing.

    Attributes
    ----------
    weight : Parameter of float32, shape (m, V)
        Exact in float16, as a model file holds it.
    mean : Parameter of float32, shape (m,)
    shift : Tensor of float32, shape (V,)
        Brings features to zero where the network says nothing; only where there is a root.
    """

    shift: Tensor | None

    def __init__(self, features: int, config: EncoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.reduced, features) / features**0.5)
        self.mean = nn.Parameter(torch.zeros(config.reduced))
        self.register_buffer("shift", torch.zeros(features) if config.transform == "sqrt" else None)

    def transformed(self, features: Tensor) -> Tensor:
        """Return what the weight is applied to, shape (B, V)."""
        return features if self.shift is None else signed_root(features + self.shift)

    def forward(self, features: Tensor) -> Tensor:
        """Return points, float32, shape (B, m), of standardised features, shape (B, V)."""
        return functional.linear(self.transformed(features), self.weight) - self.mean


class Words(nn.Module):
    """The words of all stages, on the grid of the decoding tables, and the map from their sums to vectors.

    Attributes
    ----------
    books : ParameterList of float32, shape (2**bits, m) each
        Words of the stages of two bits and more, which come first.
    signs : Parameter of float32, shape (S, m)
        The words of the other stages: minus this for 0, plus this for 1.
    log_temperature : Parameter of float32, one number a stage
    output, centre : Parameter of float32, shapes (m, V) and (V,), or None
        The map from points to standardised vectors; codes of images have none: points are their vectors.
    """

    output: nn.Parameter | None
    centre: nn.Parameter | None

    def __init__(self, config: EncoderConfig, features: int) -> None:
        super().__init__()
        m = config.reduced
        self.latents, self.bits = config.latents, config.stages
        self._named: tuple[list[tuple[int, int]], Named] | None = None
        named = [b for b in config.stages if b > 1]
        self.books = nn.ParameterList(on_grid(torch.randn(1 << b, m)) for b in named)
        signs = torch.randn(len(config.stages) - len(named), m) / 8
        self.signs = nn.Parameter(on_grid(signs, dim=1) if len(signs) else signs)
        self.log_temperature = nn.Parameter(torch.zeros(len(config.stages)))
        mapped = config.columns is not None
        self.output = nn.Parameter(on_grid(torch.randn(m, features), dim=0, grid=_MOST) / m**0.5) if mapped else None
        self.centre = nn.Parameter(torch.zeros(features)) if mapped else None

    def stages(self) -> list[Tensor]:
        """Return the words of every stage, shape (2**bits, m) each."""
        return [*self.books, *(torch.stack([-sign, sign]) for sign in self.signs)]

    def named(self) -> Named:
        """Return the words of the named stages; what is made of them is kept until one of them changes."""
        books = list(self.books)
        if torch.is_grad_enabled() or any(book.is_inference() for book in books):
            return Named.of(books, self.signs.new_zeros(0, self._width))
        state = [(book.data_ptr(), book._version) for book in books]
        if self._named is None or self._named[0] != state:
            self._named = state, Named.of(books, self.signs.new_zeros(0, self._width))
        return self._named[1]

    def forward(self, draw: Tensor, latents: int | None = None) -> Tensor:
        """Return standardised vectors, or points where there is no map, of a draw in decoder form."""
        points = self.points(draw, latents)
        return points if self.output is None or self.centre is None else points @ self.output + self.centre

    def points(self, draw: Tensor, latents: int | None = None) -> Tensor:
        """Return the sums of words of a draw, or of its first latents; a word cut short is the mean it leaves."""
        left = self.latents if latents is None else latents
        ends = _ends(1 << b for b in self.bits)
        total = draw.new_zeros(len(draw), self._width)
        count = len(self.books)
        for book, bits, (a, b) in zip(self.books, self.bits, pairwise(ends), strict=False):
            kept = min(bits, max(0, left))
            if kept:
                form = draw[:, a:b].reshape(len(draw), 1 << kept, -1).sum(2)
                total = total + form @ book.reshape(1 << kept, -1, self._width).mean(1)
            left -= bits
        if (kept := min(len(self.signs), max(0, left))) > 0:
            pairs = draw[:, ends[count] :].reshape(len(draw), -1, 2)[:, :kept]
            total = total + (pairs[:, :, 1] - pairs[:, :, 0]) @ self.signs[:kept]
        return total

    @property
    def _width(self) -> int:
        return int(self.signs.shape[1])


def _ends(sizes: Iterable[int]) -> list[int]:
    return list(accumulate(sizes, initial=0))


def _bits_of(book: Tensor) -> int:
    return len(book).bit_length() - 1


class Named(NamedTuple):
    """The words of all named stages, less the last coordinates, which none of them has.

    Parameters
    ----------
    words : Tensor, shape (words, up to m)
    squares : Tensor, shape (words,)
        Their squared lengths.
    gram : Tensor, shape (words, words)
        Twice their inner products.
    ends : list of int
        Where the stages begin and end.
    """

    words: Tensor
    squares: Tensor
    gram: Tensor
    ends: list[int]

    @classmethod
    def of(cls, books: Sequence[Tensor], empty: Tensor) -> Named:
        """Stack words, shape (K, m) each, under ``empty``, shape (0, m)."""
        words = torch.cat([empty, *books])
        used = words.detach().any(0).nonzero()
        words = words[:, : int(used.max()) + 1 if len(used) else 0]
        return cls(words, words.square().sum(1), 2 * words @ words.T, _ends(map(len, books)))


class Distances(NamedTuple):
    """Squared distances of points to every word of the named stages, less the points' own squares.

    Parameters
    ----------
    first : Tensor, shape (B, words)
        Where no word has been subtracted yet.
    gram : Tensor, shape (words, words)
        Twice the inner products of words: what subtracting one adds to the distance of another.
    ends : list of int
        Where the stages begin and end.
    """

    first: Tensor
    gram: Tensor
    ends: list[int]

    @classmethod
    def of(cls, points: Tensor, named: Named) -> Distances:
        """Measure points, shape (B, m), and words."""
        near = points[:, : named.words.shape[1]]
        return cls(torch.addmm(named.squares, near, named.words.T, alpha=-2), named.gram, named.ends)

    def rows(self, start: int, end: int) -> Distances:
        """Return those of some of the points."""
        return self._replace(first=self.first[start:end])

    def prefix(self, stages: int) -> Distances:
        """Return those of the first stages."""
        ends = self.ends[: stages + 1]
        return Distances(self.first[:, : ends[-1]], self.gram, ends)

    def after(self, paths: Tensor, stage: int) -> Tensor:
        """Return those of a stage's words, shape (B, P, K), after each of P paths, places of words (B, P, stage)."""
        begin, end = self.ends[stage], self.ends[stage + 1]
        first = self.first[:, None, begin:end]
        if not stage:
            return first
        added = functional.embedding_bag(paths.flatten(0, 1), self.gram[:begin, begin:end].contiguous(), mode="sum")
        return first + added.view(*paths.shape[:2], -1)


def beam_search(distances: Distances, width: int = BEAM) -> Tensor:
    """Return the words' places, shape (B, stages), of the nearest sum that a search of this width finds."""
    blocks = (distances.rows(start, start + _BLOCK) for start in range(0, len(distances.first), _BLOCK))
    empty = torch.zeros(0, len(distances.ends) - 1, dtype=torch.long, device=distances.first.device)
    return torch.cat([empty, *(_block_search(block, width) for block in blocks)])


def _block_search(distances: Distances, width: int) -> Tensor:
    rows = len(distances.first)
    paths = torch.zeros(rows, 1, 0, dtype=torch.long, device=distances.first.device)
    cost = distances.first.new_zeros(rows, 1)
    stages = len(distances.ends) - 1
    for stage in range(stages):
        scores = distances.after(paths, stage) + cost[:, :, None]
        count = scores.shape[2]
        scores = scores.flatten(1)
        keep = 1 if stage == stages - 1 else min(width, scores.shape[1])
        cost, best = _least(scores, keep)
        parent = torch.div(best, count, rounding_mode="floor")
        name = best - parent * count + distances.ends[stage]
        kept = paths.gather(1, parent[:, :, None].expand(-1, -1, stage))
        paths = torch.cat([kept, name[:, :, None]], dim=2)
    return paths[:, 0]


def _least(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the least scores of each row and their places, shape (B, count) each, in any order.

    They are among the columns of a square whose own least are least: half the time of looking at all.
    """
    rows = 1 << max(3, (scores.shape[1] // count).bit_length() // 2)
    columns, left = divmod(scores.shape[1], rows)
    if left or columns <= count:
        cost, best = scores.topk(count, dim=1, largest=False, sorted=False)
        return cost, best
    square = scores.view(-1, rows, columns)
    near = square.amin(1).topk(count, dim=1, largest=False, sorted=False).indices
    few = square.gather(2, near[:, None].expand(-1, rows, -1)).flatten(1)
    cost, best = few.topk(count, dim=1, largest=False, sorted=False)
    row = torch.div(best, count, rounding_mode="floor")
    return cost, row * columns + near.gather(1, best - row * count)


def sign_bits(products: Tensor, gram: Tensor) -> Tensor:
    """Return the bits of the sign stages, float32, shape (B, S), each the sign of what those before it leave.

    Signs of axes that hardly agree are chosen together: bits of a run of them do not depend on each other.
    """
    bits = torch.zeros_like(products)
    count, start, left = products.shape[1], 0, products
    near = (gram.abs() > PARALLEL * gram.diagonal()[:, None]).cpu()
    while start < count:
        end = start + 1
        while end < count and not near[start:end, end].any():
            end += 1
        bits[:, start:end] = (left[:, start:end] > 0).float()
        left = left - (2 * bits[:, start:end] - 1) @ gram[start:end]
        start = end
    return bits


class Residual(Posterior):
    r"""Words named stage by stage: q(k_s | x, k_1 ... k_(s-1)) = softmax over k of -\|r - c_k\|^2 / T_s.

    r is what the words before leave of the point u. Each bit of a name is a latent, most significant first; its
    probability is that given the bits before it, so that the latents' entropies add up to the row's. Entropy and rate
    are those along the code that a file holds. The mode is the nearest sum that a beam search over the stages of two
    bits and more finds; sign stages follow in closed form. The decoder form is one-hot, stage after stage.

    Parameters
    ----------
    parameters : Tensor of float, shape (B, m)
        Points of the reduced space.
    config : EncoderConfig
    words : Words
    sharpness : float
        What the distances are multiplied by.
    """

    def __init__(self, parameters: Tensor, config: EncoderConfig, words: Words, sharpness: float = 1.0) -> None:
        super().__init__(parameters, config)
        self.words, self.sharpness = words, sharpness

    @staticmethod
    def width(config: EncoderConfig) -> int:  # noqa: D102
        return config.reduced

    @staticmethod
    def noise(config: EncoderConfig) -> int:  # noqa: D102
        return sum(1 << b for b in config.stages)

    @cached_property
    def _distances(self) -> Distances:
        return Distances.of(self.parameters, self.words.named())

    @cached_property
    def _inverse(self) -> Tensor:
        return self.sharpness * torch.exp(-self.words.log_temperature)

    @cached_property
    def _paths(self) -> Tensor:
        with torch.no_grad():
            return beam_search(self._distances)

    def _products(self, paths: Tensor) -> Tensor:
        """Return the inner products of what named stages leave with every sign's word, shape (B, S)."""
        left = self.parameters
        for stage, book in enumerate(self.words.books):
            left = left - book[paths[:, stage] - self._distances.ends[stage]]
        return left @ self.words.signs.T

    @cached_property
    def _mode(self) -> Tensor:
        with torch.no_grad():
            signs = self.words.signs
            ones = sign_bits(self._products(self._paths), signs @ signs.T)
            return torch.cat([self._bits(self._paths), ones.to(torch.uint8)], dim=1)

    def mode(self) -> Tensor:  # noqa: D102
        return self._mode

    @torch.no_grad()
    def mode_of(self, latents: int) -> Tensor:
        """Return the code of the first stages alone, searched for itself: nearer to the point than the mode's prefix.

        As a prefix the first word only has to lead to a good sum; for itself it is the nearest word.
        """
        stages = [end for end in accumulate(map(_bits_of, self.words.books)) if end - latents < 0]
        if len(stages) == len(self.words.books):
            return super().mode_of(latents)
        first = self._distances
        return self._bits(beam_search(first.prefix(len(stages) + 1)))[:, :latents]

    def _bits(self, paths: Tensor) -> Tensor:
        """Return the bits, uint8, that write the named stages' names."""
        parts = [paths.new_zeros(len(paths), 0)]
        for stage, book in enumerate(list(self.words.books)[: paths.shape[1]]):
            shifts = torch.arange(len(book).bit_length() - 2, -1, -1, device=paths.device)
            parts.append((paths[:, stage, None] - self._distances.ends[stage]) >> shifts & 1)
        return torch.cat(parts, dim=1).to(torch.uint8)

    def _names(self, symbols: Tensor) -> Tensor:
        """Return the words' places, shape (B, stages), that bits name."""
        parts, at = [], 0
        for stage, book in enumerate(self.words.books):
            bits = len(book).bit_length() - 1
            parts.append(_named(symbols[:, at : at + bits]) + self._distances.ends[stage])
            at += bits
        return torch.stack(parts, dim=1) if parts else symbols.new_zeros(len(symbols), 0).long()

    def _log_words(self, paths: Tensor) -> list[Tensor]:
        """Return log q of every word of the named stages after the words before it, shape (B, K) each."""
        after = (self._distances.after(paths[:, None, :stage], stage)[:, 0] for stage in range(paths.shape[1]))
        return [torch.log_softmax(-d * self._inverse[stage], dim=1) for stage, d in enumerate(after)]

    def _log_odds(self, paths: Tensor, ones: Tensor) -> Tensor:
        """Return the log-odds of a one at every sign stage, given those before it, shape (B, S)."""
        signs = self.words.signs
        left = self._products(paths) - (2 * ones.float() - 1) @ torch.triu(signs @ signs.T, diagonal=1)
        return 4 * left * self._inverse[len(self.words.books) :]

    def _split(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Return the paths and the sign stages' bits that symbols stand for."""
        return self._names(symbols), symbols[:, symbols.shape[1] - len(self.words.signs) :]

    def tempered(self, temperature: float) -> Residual:  # noqa: D102
        other = Residual(self.parameters, self.config, self.words, self.sharpness / temperature)
        other.__dict__["_distances"] = self._distances  # neither they nor what follows depend on it
        other.__dict__ |= {name: self.__dict__[name] for name in ("_paths", "_mode") if name in self.__dict__}
        return other

    def sample(self, uniform: Tensor, estimator: str = "straight-through", temperature: float = 1.0) -> Tensor:  # noqa: D102
        self._check(estimator, temperature)
        gumbel = -(-inside(uniform).log()).log()
        ends, left, parts = _ends(1 << b for b in self.config.stages), self.parameters, []
        for stage, book in enumerate(self.words.books):
            logits = -self._inverse[stage] * torch.addmm(book.square().sum(1), left, book.T, alpha=-2)
            form = _drawn(logits, gumbel[:, ends[stage] : ends[stage + 1]], estimator, temperature)
            left = left - form @ book
            parts.append(form)
        signs, start = self.words.signs, len(self.words.books)
        gram, products = signs @ signs.T, left @ signs.T
        for j in range(len(signs)):
            logit = 2 * products[:, j] * self._inverse[start + j]
            begin = ends[start + j]
            form = _drawn(torch.stack([-logit, logit], dim=1), gumbel[:, begin : begin + 2], estimator, temperature)
            products = products - (form[:, 1:] - form[:, :1]) * gram[j]
            parts.append(form)
        return torch.cat(parts, dim=1)

    @staticmethod
    def embed(symbols: Tensor, config: EncoderConfig) -> Tensor:  # noqa: D102
        ends = _ends(config.stages)
        names = (_named(symbols[:, a:b]) for a, b in pairwise(ends))
        return torch.cat(
            [functional.one_hot(n, 1 << b).float() for n, b in zip(names, config.stages, strict=True)], dim=1
        )

    def symbols(self, draw: Tensor) -> Tensor:  # noqa: D102
        forms = torch.split(draw.detach(), [1 << b for b in self.config.stages], dim=1)
        return self._written([functional.one_hot(form.argmax(1), form.shape[1]).float() for form in forms]).long()

    def decisions(self, draw: Tensor) -> Tensor:
        """Return the bits of the names, a linear function of one-hot vectors: gradients are the draw's."""
        return self._written(list(torch.split(draw, [1 << b for b in self.config.stages], dim=1)))

    def _written(self, forms: list[Tensor]) -> Tensor:
        return torch.cat([form @ _written_bits(form) for form in forms], dim=1)

    def log_prob(self, symbols: Tensor) -> Tensor:  # noqa: D102
        paths, ones = self._split(symbols)
        parts, at = [], 0
        for log_q in self._log_words(paths):
            bits = log_q.shape[1].bit_length() - 1
            before = log_q.new_zeros(len(log_q))
            for level in range(1, bits + 1):
                mass = log_q.reshape(len(log_q), 1 << level, -1).logsumexp(2)
                place = _named(symbols[:, at : at + level])
                here = mass.gather(1, place[:, None])[:, 0]
                parts.append(here - before)
                before = here
            at += bits
        odds = self._log_odds(paths, ones)
        signs = -functional.binary_cross_entropy_with_logits(odds, ones.to(odds.dtype), reduction="none")
        return torch.cat([*(part[:, None] for part in parts), signs], dim=1)

    def entropy(self) -> Tensor:  # noqa: D102
        paths, ones = self._split(self.mode())
        parts = []
        for log_q in self._log_words(paths):
            mass, levels = log_q.exp(), []
            while mass.shape[1] > 1:
                levels.append(torch.special.entr(mass).sum(1))
                mass = mass[:, ::2] + mass[:, 1::2]
            levels.append(log_q.new_zeros(len(log_q)))
            parts += [(here - before).clamp(min=0) for before, here in pairwise(levels[::-1])]
        odds = self._log_odds(paths, ones)
        signs = functional.binary_cross_entropy_with_logits(odds, torch.sigmoid(odds), reduction="none")
        return torch.cat([*(part[:, None] for part in parts), signs], dim=1)

    def uncertainty(self) -> Tensor:
        """Return the entropy of the first word, in nats, shape (B,): of all latents, where there are signs alone.

        The first words are clusters, which later ones only refine: on a held-out part of CIFAR-10's training split
        the AUROC of a probe's errors is 0.61 by the first word of the default model, 0.55 by all latents.
        """
        if not len(self.words.books):
            return super().uncertainty()
        first = self._distances.first[:, : len(self.words.books[0])]
        found: Tensor = torch.special.entr(torch.softmax(-first * self._inverse[0], dim=1)).sum(1)
        return found

    def rate(self, prior: Tensor) -> Tensor:  # noqa: D102
        paths, ones = self._split(self.mode())
        parts = [log_q.exp() @ _written_bits(log_q) for log_q in self._log_words(paths)]
        probability = torch.cat([*parts, torch.sigmoid(self._log_odds(paths, ones))], dim=1)
        return (functional.softplus(prior) - probability * prior) / BIT

    def kl(self, prior: Tensor) -> Tensor:  # noqa: D102
        return self.rate(prior) * BIT - self.entropy()


POSTERIORS["residual"] = Residual


def _named(bits: Tensor) -> Tensor:
    """Return the numbers, int64, shape (B,), that bits, shape (B, b), write, most significant first."""
    name = bits.new_zeros(len(bits), dtype=torch.long)
    for bit in bits.long().unbind(1):
        name = 2 * name + bit
    return name


def _written_bits(form: Tensor) -> Tensor:
    """Return the bits of every name of a stage, shape (K, bits)."""
    count = form.shape[1]
    shifts = torch.arange(count.bit_length() - 2, -1, -1, device=form.device)
    return (torch.arange(count, device=form.device)[:, None] >> shifts & 1).to(form.dtype)


def _drawn(logits: Tensor, gumbel: Tensor, estimator: str, temperature: float) -> Tensor:
    perturbed = logits + gumbel
    if estimator == "relaxed":
        return torch.softmax(perturbed / temperature, dim=1)
    hard = functional.one_hot(perturbed.argmax(dim=1), logits.shape[1]).to(logits.dtype)
    return straight_through(hard, torch.softmax(logits, dim=1))
