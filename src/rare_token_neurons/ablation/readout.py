"""What the unablated model predicts, and how far ablating a neuron moves its logits.

One position: c is the final residual stream after the norm's centring, s = 1/sqrt(|c|^2/d + eps) its scale, U the
unembedding, f = s U (gain c) the logits without bias, p = softmax(logits), z = log p + H with H the entropy.
Ablating neuron i moves c by delta u_i and the logits by rho f + tau B_i, where B_i = U (gain u_i), rho = s'/s - 1 and
tau = s' delta.

float64 serves where float32 cancels, on arrays without the product of positions, neurons and vocabulary:
the base logits (at |logit| ~ 1000 a float32 logit is off by 1e-4, and so is p) and rho (|c'|^2 is the small
difference of large terms when the neuron makes up most of c).
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY_CHUNK = 2048  # columns of the vocabulary in one step of a sum
CACHED = 2**17  # logits worked on at a time


@dataclass
class Readout:
    """From the final residual stream to the logits: norm and unembedding.

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
        return torch.cat([vectors @ self.rows(part, centre).T for part in self.parts()], 1)

    def directions(self, u):
        """Output weights (d, neurons) with the gain, in the unembedding's dtype."""
        return (self.gain.double()[:, None] * u).to(self.unembedding.dtype)

    def centred(self, vectors):
        """Residual vectors (..., d) as the norm sees them, in float64."""
        vectors = vectors.double()
        return vectors - vectors.mean(-1, keepdim=True) if self.centring else vectors


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

    @property
    def scale(self):
        """(n,) float64, s."""
        return (self.residual.shape[-1] / self.square).sqrt()


def predict(readout, residual, targets, step):
    """The base predictions at n positions.

    Parameters
    ----------
    residual : (n, d), the final residual stream before the norm.
    targets : int64 (n,)
    step : positions at a time in float64.

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
    return Predictions(c, square, targets, f, log_p, centre, **columns,
                       z_is_f=readout.bias is None and not readout.frozen)


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
                   direction=unigram_direction(subject.unigram_counts).to(subject.dtype) if wanted else None)


def predict_at(readout, capture, positions, memory_gb):
    """The base predictions at positions (n, 2) of a capture, within memory_gb. See `predict`."""
    block, t = positions.unbind(1)
    residual = capture.residual[block, t - capture.first]
    step = int(memory_gb * 1e9 / residual.dtype.itemsize / 48 / len(readout.unembedding))
    return predict(readout, residual, capture.tokens[block, t + 1], max(1, step))


def shifts(predictions, u, delta, frozen_scale=False):
    """rho and tau of every (position, neuron): the logits move by rho f + tau B.

    Parameters
    ----------
    u : (d, neurons) float64, output weights after the norm's centring.
    delta : (n, neurons) float64, reference less activation.
    frozen_scale : bool, whether the norm keeps its scale.

    Returns
    -------
    rho, tau : (n, neurons) float64
    """
    if frozen_scale:
        return torch.zeros_like(delta), predictions.scale[:, None] * delta
    growth = delta * (2 * (predictions.residual @ u) + delta * (u * u).sum(0))  # |c'|^2 - |c|^2
    rho = torch.expm1(-0.5 * torch.log1p(growth / predictions.square[:, None]))
    return rho, predictions.scale[:, None] * (1 + rho) * delta


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
