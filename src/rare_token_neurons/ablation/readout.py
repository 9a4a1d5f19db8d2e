"""What the unablated model predicts, and how far ablating a neuron moves its logits.

One position: c is the final residual stream after the norm's centring, s = 1/sqrt(|c|^2/d + eps) its scale, U the
unembedding, f = s U (gain c) the logits without bias, p = softmax(logits), z = log p + H with H the entropy.
Ablating neuron i moves c by delta u_i and the logits by rho f + tau B_i, where B_i = U (gain u_i), rho = s'/s - 1 and
tau = s' delta.

Where an RMS norm (gain1, eps1) stands between the MLP and the residual stream, the MLP's output m = sum_i a_i w_i is
written as y = gain1 r m, r = 1/sqrt(|m|^2/d + eps1), and ablating neuron i changes r too: with kappa = r'/r - 1 and
u_i = gain1 w_i, c moves by kappa y + r' delta u_i. Then the logits move by rho f + sigma G + tau B_i, where
G = s U (gain y), what the MLP adds to the logits, sigma = (1 + rho) kappa and tau = s' r' delta.

float64 serves where float32 cancels, on arrays without the product of positions, neurons and vocabulary:
the base logits (at |logit| ~ 1000 a float32 logit is off by 1e-4, and so is p) and rho (|c'|^2 is the small
difference of large terms when the neuron makes up most of c), and likewise kappa.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

VOCABULARY_CHUNK = 2048  # columns of the vocabulary in one step of a sum
CACHED = 2**17  # logits worked on at a time
NEURONS = 2048  # whose weights are held in float64 at a time


@dataclass
class Readout:
    """From the final residual stream to the logits, norm and unembedding; and the norm between MLP and stream, if any.

    direction is a unit vector over the vocabulary (or None): the logits' projection on it is reported, and with
    `frozen` it does not move under ablation.
    """

    unembedding: Tensor  # (vocabulary, d)
    bias: Tensor | None  # (vocabulary,) float64: what the norm's bias and the head's add to the logits
    gain: Tensor  # (d,)
    eps: float
    centring: bool
    direction: Tensor | None = None  # (vocabulary,)
    frozen: bool = False
    along: Tensor | None = None  # (d,) float64: the direction, read back into the residual stream
    mlp_gain: Tensor | None = None  # (d,) of the norm between the MLP and the residual stream
    mlp_eps: float | None = None

    def __post_init__(self):
        if self.direction is not None:
            self.along = sum(self.direction[part].double() @ self.unembedding[part].double() for part in self.parts())

    def parts(self):
        """Slices that cover the vocabulary."""
        n_vocab = len(self.unembedding)
        return [slice(start, min(start + VOCABULARY_CHUNK, n_vocab)) for start in range(0, n_vocab, VOCABULARY_CHUNK)]

    def rows(self, part, centre):
        """Rows of the unembedding, less the frozen direction and less `centre` (d,)."""
        rows = self.unembedding[part] - centre
        if self.frozen:
            rows -= self.direction[part][:, None] * self.along.to(rows.dtype)
        return rows

    def project(self, vectors, centre):
        """Logits that residual vectors (k, d), gain included, add up to, less a constant each: (k, vocabulary)."""
        logits = vectors.new_empty(len(vectors), len(self.unembedding))
        for part in self.parts():
            torch.mm(vectors, self.rows(part, centre).T, out=logits[:, part])
        return logits

    def directions(self, u):
        """u (d, neurons) with the gain, in the unembedding's dtype."""
        return (self.gain.double()[:, None] * u).to(self.unembedding.dtype)

    def centred(self, vectors):
        """Residual vectors (..., d) as the norm sees them, in float64."""
        vectors = vectors.double()
        return vectors - vectors.mean(-1, keepdim=True) if self.centring else vectors

    def outward(self, weights):
        """u of output weights (d, neurons), float64: with the gain of the MLP's norm, and as the final norm sees them."""
        return self.centred(weights.T if self.mlp_gain is None else weights.T * self.mlp_gain.double()).T

    def written(self, m):
        """What outputs m (..., d) of the MLP add to the residual stream."""
        if self.mlp_gain is None:
            return m
        return nn.functional.rms_norm(m, m.shape[-1:], self.mlp_gain.to(m.dtype), self.mlp_eps)


@dataclass
class Written:
    """Where a norm follows the MLP: what it makes of the MLP's output m, and the cumulants of G. See `predict`."""

    m: Tensor  # (n, d) float64
    square: Tensor  # (n,) float64, |m|^2 + d eps1
    stream: Tensor  # (n, d) float64, y as the final norm sees it
    g: Tensor  # (n, vocabulary), G, centred under p
    of: dict[str, Tensor]  # (n,) second and third joint cumulants of G with f and z under p: fg, gg, ffg, ..., zgg

    @property
    def scale(self):
        """(n,) float64, r."""
        return (self.m.shape[-1] / self.square).sqrt()


@dataclass
class Predictions:
    """What the unablated model predicts at n positions, and the cumulants of f and z there. See `predict`."""

    residual: Tensor  # (n, d) float64, c
    square: Tensor  # (n,) float64, |c|^2 + d eps
    targets: Tensor  # (n,)
    f: Tensor  # (n, vocabulary), centred under p
    log_p: Tensor  # (n, vocabulary)
    centre: Tensor  # (d,) the unembedding's mean row under the mean of p
    entropy: Tensor  # (n,) nats
    z_is_f: bool
    ff: Tensor  # (n,) second and third joint cumulants of f and z under p
    fff: Tensor
    zf: Tensor
    zff: Tensor
    written: Written | None = None  # None: the MLP writes linearly

    @property
    def scale(self):
        """(n,) float64, s."""
        return (self.residual.shape[-1] / self.square).sqrt()


def predict(readout, residual, targets, step, m=None):
    """The base predictions at n positions.

    Parameters
    ----------
    residual : (n, d), the final residual stream before the norm.
    targets : int64 (n,)
    step : positions at a time in float64.
    m : (n, d) float64, the MLP's output where a norm follows it.

    Returns
    -------
    Predictions, in the dtype of `residual`
    """
    c = readout.centred(residual)
    square = (c * c).sum(-1) + c.shape[-1] * readout.eps
    direct = c * (c.shape[-1] / square).sqrt()[:, None] * readout.gain  # (n, d)
    f = residual.new_empty(len(c), len(readout.unembedding))
    log_p = torch.empty_like(f)
    mean_p = f.new_zeros(f.shape[1])
    columns = {name: f.new_empty(len(c)) for name in ("entropy", "ff", "fff", "zf", "zff")}
    few = max(1, CACHED // f.shape[1])
    for start in range(0, len(c), step):
        block = direct[start: start + step]
        wide = torch.cat([block @ readout.unembedding[part].double().T for part in readout.parts()], 1)
        for first in range(0, len(wide), few):
            rows = slice(start + first, start + min(first + few, len(wide)))
            mode, f[rows] = _split(readout, wide[first: first + few])
            p = mode.exp()
            whole = p.sum(1, keepdim=True)
            p /= whole
            log_p[rows] = mode - whole.log()
            f[rows] -= (p * f[rows]).sum(1, keepdim=True)
            mean_p += p.sum(0) / len(c)
            columns["entropy"][rows] = _entropy(p, log_p[rows])
            z = log_p[rows] + columns["entropy"][rows, None]
            for powers in ("f", "ff"):
                p *= f[rows]
                columns["z" + powers][rows] = (p * z).sum(1)
                columns["f" + powers][rows] = (p * f[rows]).sum(1)
    centre = sum(mean_p[part] @ readout.unembedding[part] for part in readout.parts())
    base = Predictions(c, square, targets, f, log_p, centre, **columns,
                       z_is_f=readout.bias is None and not readout.frozen)
    return base if m is None else replace(base, written=_written(readout, base, m))


def _written(readout, base, m):
    stream, square = readout.centred(readout.written(m)), (m * m).sum(-1) + m.shape[-1] * readout.mlp_eps
    g = readout.project((base.scale[:, None] * stream * readout.gain).to(base.f.dtype), base.centre)
    of = {name: g.new_empty(len(g)) for name in ("fg", "gg", "ffg", "fgg", "ggg", "zg", "zfg", "zgg")}
    few = max(1, CACHED // g.shape[1])
    for rows in (slice(start, start + few) for start in range(0, len(g), few)):
        p = base.log_p[rows].exp()
        g[rows] -= (p * g[rows]).sum(1, keepdim=True)
        factors = {"f": base.f[rows], "g": g[rows], "z": base.log_p[rows] + base.entropy[rows, None]}
        for name, cumulants in of.items():
            cumulants[rows] = math.prod((factors[factor] for factor in name), start=p).sum(1)
    return Written(m, square, stream, g, of)


def _split(readout, wide):
    """Logits relative to their largest, and f relative to its value there, rounded only after the subtraction."""
    logits = wide if readout.bias is None else wide + readout.bias
    top = logits.argmax(1, keepdim=True)
    dtype = readout.unembedding.dtype
    relative = (logits - logits.gather(1, top)).to(dtype)
    if readout.frozen:
        wide = wide - (wide @ readout.direction.double())[:, None] * readout.direction
    elif readout.bias is None:
        return relative, relative
    return relative, (wide - wide.gather(1, top)).to(dtype)


def _entropy(p, log_p):
    return -(p * log_p).sum(1)


def readout_of(subject, freeze=None, unigram=False):
    """The Readout of a subject.

    Parameters
    ----------
    freeze : "unigram" keeps the logits' component along the unigram direction where it is.
    unigram : bool, whether the projection on that direction is wanted (where the subject has counts).
    """
    bias = subject.unembedding_bias
    if subject.norm_bias is not None:
        beta = subject.norm_bias.double()
        through = torch.cat([rows.double() @ beta for rows in subject.unembedding.split(VOCABULARY_CHUNK)])
        bias = through if bias is None else through + bias
    wanted = subject.unigram_counts is not None and (unigram or freeze == "unigram")
    return Readout(subject.unembedding, bias if bias is not None and bias.any() else None, subject.norm_gain,
                   subject.norm_eps, centring=subject.norm == "layer", frozen=freeze == "unigram",
                   direction=unigram_direction(subject.unigram_counts).to(subject.dtype) if wanted else None,
                   mlp_gain=subject.mlp_norm_gain, mlp_eps=subject.mlp_norm_eps)


def predict_at(readout, subject, capture, positions, memory_gb):
    """The base predictions at positions (n, 2) of a capture, within memory_gb. See `predict`."""
    block, t = positions.unbind(1)
    residual = capture.residual[block, t - capture.first]
    step = int(memory_gb * 1e9 / residual.dtype.itemsize / 48 / len(readout.unembedding))
    m = None if readout.mlp_gain is None else mlp_output(subject, capture.activations[block, t - capture.first])
    return predict(readout, residual, capture.tokens[block, t + 1], max(1, step), m)


def mlp_output(subject, activations):
    """(n, d) float64, what the final MLP makes of its neurons' activations (n, neurons), less its bias."""
    parts = zip(activations.split(NEURONS, 1), subject.w_out.split(NEURONS, 1))
    return sum(some.double() @ w.T.double() for some, w in parts)


def mean_scale(readout, subject, capture):
    """What the norms multiply u by at the mean scored position of a capture: s, and r where a norm follows the MLP."""
    scales = []
    for residual, activations in zip(capture.residual, capture.activations):
        scales.append((readout.centred(residual).square().mean(-1) + readout.eps).rsqrt())
        if readout.mlp_gain is not None:
            scales[-1] *= (mlp_output(subject, activations).square().mean(-1) + readout.mlp_eps).rsqrt()
    return torch.cat(scales).mean().item()


class Shifts(NamedTuple):
    """How far ablation moves the logits, by rho f + sigma G + tau B; sigma is None where the MLP writes linearly."""

    rho: Tensor
    tau: Tensor
    sigma: Tensor | None

    def map(self, function):
        """The Shifts that a function makes of each part."""
        return Shifts(*(part if part is None else function(part) for part in self))


def shifts(predictions, w, u, delta, frozen_scale=False):
    """The Shifts of every (position, neuron).

    Parameters
    ----------
    w : (d, neurons), output weights ; u : (d, neurons) float64, from `Readout.outward`.
    delta : (n, neurons) float64, reference less activation.
    frozen_scale : bool, whether the final norm keeps its scale.

    Returns
    -------
    Shifts of (n, neurons) float64
    """
    c, written = predictions.residual, predictions.written
    if written is not None:
        w, y = w.double(), written.stream
        kappa = _rescaling(delta * (2 * (written.m @ w) + delta * (w * w).sum(0)), written.square[:, None])
        delta = written.scale[:, None] * (1 + kappa) * delta
    rho = torch.zeros_like(delta)
    if not frozen_scale:
        growth = delta * (2 * (c @ u) + delta * (u * u).sum(0))  # |c'|^2 - |c|^2
        if written is not None:
            growth += kappa * ((2 * c * y).sum(1)[:, None] + kappa * (y * y).sum(1)[:, None] + 2 * delta * (y @ u))
        rho = _rescaling(growth, predictions.square[:, None])
    return Shifts(rho, predictions.scale[:, None] * (1 + rho) * delta, None if written is None else (1 + rho) * kappa)


def joint_shifts(predictions, w, u, delta):
    """The Shifts, rho and sigma (n,) and tau (n, m), where m neurons are ablated at once. See `shifts`."""
    c, written, v = predictions.residual, predictions.written, delta @ u.T  # (n, d)
    if written is not None:
        moved = delta @ w.T.double()
        kappa = _rescaling((moved * (2 * written.m + moved)).sum(-1), written.square)
        rescaled = written.scale * (1 + kappa)
        delta, v = rescaled[:, None] * delta, kappa[:, None] * written.stream + rescaled[:, None] * v
    rho = _rescaling((v * (2 * c + v)).sum(-1), predictions.square)
    return Shifts(rho, (predictions.scale * (1 + rho))[:, None] * delta, None if written is None else (1 + rho) * kappa)


def _rescaling(growth, square):
    """A norm's new scale over the old one, less 1, where the square below it grows."""
    return torch.expm1(-0.5 * torch.log1p(growth / square))


def unigram_direction(counts):
    """The unit vector along the centred log-unigram distribution (Stolfo et al. 2024), each count raised by one.

    Parameters
    ----------
    counts : (vocabulary,)

    Raises
    ------
    ValueError
        Counts that are all equal or negative.
    """
    logs = (counts.double() + 1).log()
    logs = logs - logs.mean()
    if not logs.norm() > 0:
        raise ValueError("The unigram counts must be at least 0 and not all equal.")
    return logs / logs.norm()


@contextmanager
def full_precision():
    """No gradients, no TF32 or bfloat16 in float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
