"""How long ablating every neuron takes: this kernel, one forward pass, and the two usual ways.

Each measurement is a process of its own, since a process' peak memory never falls. Extrapolated seconds say from what. From
the command line all of them have memory as torch lays it out by itself, and threads that spin while they wait, unless
`--as-here` is given: the usual ways are measured as they are run elsewhere, and nothing else is to run beside them.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rare_token_neurons import packages, paths
from rare_token_neurons.ablation.capture import capture
from rare_token_neurons.ablation.neurons import TOLERANCE, influence, loss_changes
from rare_token_neurons.curve import calibration, heads
from rare_token_neurons.models import checkpoints, subject
from rare_token_neurons.text import documents as texts, rarity

SHAPES = {  # the final layers of Pythia: width, layers, heads, neurons, vocabulary
    "pythia-70m": (512, 6, 8, 2048, 50304),
    "pythia-410m": (1024, 24, 16, 4096, 50304),
    "pythia-1b": (2048, 16, 8, 8192, 50304),
}
POSITIONS = (256, 1024, 4096)
SCORED = 0.047  # share of the Pile's tokens that the paper's 50 % rule calls rare
BLOCK = 256
CHECKED = 64  # neurons, and positions, on which the error is measured
SQUARE = 3072  # rows of the matrices by which the processor's speed is taken
FORWARD, HOOKED = 4096, 1024  # tokens of (a) and (b)
UNEMBEDDED = 4  # neurons of (c)
MODELS = (*SHAPES, *(name for name in packages.NAMED  # others are fetched on request alone
                     if name in packages.EMBEDDED or packages.folder(name).exists()))
AS_ELSEWHERE = {"OMP_WAIT_POLICY": "ACTIVE", "THP_MEM_ALLOC_ENABLE": "0"}  # the package asks for the opposite of both
GROUP, DOCUMENTS = 2_000, 300  # positions of a group in one checkpoint, and documents that they lie in
CHECKPOINTS = 154  # of a Pythia model


def subject_of(model, whole=True):
    """A random model of a shape in `SHAPES` (with its last layer alone unless `whole`), or any model `load` knows."""
    if model not in SHAPES and not isinstance(model, tuple):
        return checkpoints.load(model)
    width, layers, heads, neurons, vocabulary = SHAPES.get(model, model)
    torch.manual_seed(0)
    network = GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers if whole else 1, num_attention_heads=heads,
        intermediate_size=neurons, max_position_embeddings=BLOCK, attn_implementation="eager"))
    return subject.dissect(network, model_id=str(model))


def tokens_of(subject, n):
    """At least n tokens in blocks: held-out text where there is a tokenizer, else random."""
    blocks = -(-n // BLOCK)
    if subject.tokenizer is None:
        return torch.randint(subject.n_vocab, (blocks, BLOCK), generator=torch.Generator().manual_seed(1))
    table = texts.documents().query("split == 'held-out'").sample(frac=1, random_state=1)
    ids = texts.encode(subject.tokenizer, table["text"])
    made = rarity.blocks(ids, np.arange(len(ids)), opening=texts.opening(subject.tokenizer))
    return torch.from_numpy(made.tokens[:blocks])


def scored(subject, n):
    """A capture with n positions: all or, where it has more, evenly spaced ones."""
    kept = capture(subject, tokens_of(subject, n + n // 50 + BLOCK))
    return kept, kept.positions[torch.linspace(0, len(kept.positions) - 1, n).long()]


def seconds(function, repeats=1):
    """Shortest wall time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def product_speed():
    """float32 operations a second in a square matrix product."""
    a, b = torch.randn(2, SQUARE, SQUARE)
    return 2 * SQUARE**3 / seconds(lambda: a @ b, repeats=3)


def peak_gb():
    """Peak memory of this process (Linux counts it from the process' start, elsewhere a parent's may show through)."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text("utf-8").split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# ---- one measurement a function; each returns a dict of numbers


def forward(model):
    """(a) The forward pass that finds activations and residuals: seconds a token."""
    subject = subject_of(model)
    read = tokens_of(subject, FORWARD)
    capture(subject, read[:1])
    took = seconds(lambda: [subject.model.base_model(block, use_cache=False) for block in read.split(1)])
    return {"a_token": took / read.numel(), "sample": read.numel(), "peak": peak_gb()}


def hooked(model):
    """(b) A hook on one neuron and a forward pass to the logits: seconds a token and neuron."""
    subject = subject_of(model)
    read = tokens_of(subject, HOOKED)

    def ablate(module, inputs):
        activations = inputs[0].clone()
        activations[..., 0] = 0
        return (activations,)

    subject.mlp_out.register_forward_pre_hook(ablate)
    with torch.no_grad():
        subject.model(read[:1])
        took = seconds(lambda: subject.model(read, use_cache=False).logits.log_softmax(-1))
    return {"a_token": took / read.numel(), "sample": read.numel(), "peak": peak_gb()}


def by_definition(subject, kept, positions, neurons, dtype):
    """Loss changes (n, m) from the cached residual: move it, norm it and unembed it anew for each neuron."""
    block, t = positions.unbind(1)
    x, target = kept.residual[block, t - kept.first].to(dtype), kept.tokens[block, t + 1][:, None]
    gain, unembedding = subject.norm_gain.to(dtype), subject.unembedding.to(dtype)
    bias = 0 if subject.unembedding_bias is None else subject.unembedding_bias.to(dtype)

    def loss(x):
        x = x - x.mean(-1, keepdim=True) if subject.norm == "layer" else x
        x = gain * x / (x.square().mean(-1, keepdim=True) + subject.norm_eps).sqrt()
        x = x if subject.norm_bias is None else x + subject.norm_bias.to(dtype)
        return -(x @ unembedding.T + bias).log_softmax(-1).gather(1, target)[:, 0]

    w, mlp_gain = subject.w_out.to(dtype), subject.mlp_norm_gain
    made = None if mlp_gain is None else kept.activations[block, t - kept.first].to(dtype) @ w.T  # by the MLP, before its norm

    def normed(m):
        return mlp_gain.to(dtype) * m / (m.square().mean(-1, keepdim=True) + subject.mlp_norm_eps).sqrt()

    before, changes = loss(x), []
    for neuron in neurons.tolist():
        delta = kept.means[neuron].to(dtype) - kept.activations[block, t - kept.first, neuron].to(dtype)
        moved = delta[:, None] * w[:, neuron]
        changes.append(loss(x + (moved if mlp_gain is None else normed(made + moved) - normed(made))) - before)
    return torch.stack(changes, 1)


def cached(model, n):
    """(c) Cached residual and unembedding: seconds a neuron at n positions, the shorter of two calls."""
    subject = subject_of(model, whole=False)
    kept, positions = scored(subject, n)
    run = partial(by_definition, subject, kept, positions, dtype=torch.float32)
    with torch.no_grad():
        took = seconds(lambda: run(neurons=torch.arange(UNEMBEDDED)), repeats=2)  # one unembedding a neuron, one without any
    return {"a_neuron": took / (UNEMBEDDED + 1), "sample": UNEMBEDDED, "peak": peak_gb()}


def operations(subject, n, neurons):
    """Operations in the kernel's matrix products over the vocabulary: B, three sums of its powers, three mean rows, logits."""
    return 2 * subject.n_vocab * (subject.d_model * neurons + 3 * n * neurons + 4 * n * subject.d_model)


def kernel(model, n):
    """(d) This kernel, guard on: all neurons at n positions, the shorter of two calls."""
    subject = subject_of(model, whole=False)
    kept, positions = scored(subject, n)
    speed, found = product_speed(), []
    took = seconds(lambda: found.append(influence(subject, kept, positions, entropy=False)), repeats=2)
    share = operations(subject, n, subject.n_neurons) / took / max(speed, product_speed())
    return {"seconds": took, "peak": peak_gb(), "share": share, "fallback": found[0].fallback}


def neurons_taken(model, n):
    """Seconds for a quarter, half and all of the neurons at n positions."""
    subject = subject_of(model, whole=False)
    kept, positions = scored(subject, n)
    counts = [subject.n_neurons // part for part in (4, 2, 1)]
    influence(subject, kept, positions[:8], neurons=torch.arange(8), entropy=False)
    took = [seconds(lambda: influence(subject, kept, positions, neurons=torch.arange(m), entropy=False)) for m in counts]
    return {"counts": counts, "seconds": took}


def errors(model):
    """Largest error against float64 on the same capture, half of the neurons being the most influential ones."""
    subject = subject_of(model, whole=False)
    kept, positions = scored(subject, CHECKED)
    order = influence(subject, kept, positions, entropy=False).mean_abs.argsort(descending=True)
    half = min(CHECKED, subject.n_neurons) // 2
    neurons = torch.cat([order[:half], order[half :: max(1, (len(order) - half) // half)][:half]])
    with torch.no_grad():
        expected = by_definition(subject, kept, positions, neurons, torch.float64)
    error = (loss_changes(subject, kept, positions, neurons=neurons) - expected).abs()
    allowed = (TOLERANCE[torch.float32].relative * expected.abs()).clamp_min(TOLERANCE[torch.float32].least)
    return {"largest": error.max().item(), "of_tolerance": (error / allowed).max().item(),
            "neurons": len(neurons), "positions": CHECKED}


def reading(model):
    """Loading a checkpoint's weights from disk: seconds."""
    with tempfile.TemporaryDirectory() as folder:
        for part in (subject_of(model).model, checkpoints.load_tokenizer("mini-pythia")):
            part.save_pretrained(folder)
        return {"seconds": seconds(lambda: checkpoints.load(folder)), "peak": peak_gb()}


def statistics(model, n):
    """The ranked curve of influences planted in n documents, with intervals and nulls, for all neurons: seconds."""
    neurons, rng = subject_of(model, whole=False).n_neurons, np.random.default_rng(0)
    sums, counts = calibration.measured(calibration.law(np.arange(1, neurons + 1) - 0.5), rng, documents=n)

    def judged():
        found = heads.measure(sums, counts)
        heads.judge(found, heads.null_curves(found, seed=1))

    return {"seconds": seconds(judged), "peak": peak_gb()}


# ---- all of them


def alone(function, *arguments, threads):
    """Run a measurement in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context, _begin, (threads,)) as pool:
        return pool.submit(function, *arguments).result()


def _begin(threads):
    """What a process starts with: Ctrl-C ends it without a word, and so many threads."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if threads:
        torch.set_num_threads(threads)


def bench(models=MODELS, positions=POSITIONS, *, threads=None, say=print):
    """Measure each model.

    Parameters
    ----------
    models : names in `SHAPES`, models that `checkpoints.load` knows, or shapes.
    positions : numbers of positions for the kernel; the alternatives are reported for the middle one.
    threads : int or None (torch's own number).

    Returns
    -------
    pandas.DataFrame with one row a measurement: model, what, positions, seconds, peak memory (GB), note
    """
    rows = []
    for model in models:
        for row in _measured(model, sorted(positions), partial(alone, threads=threads)):
            rows.append({"model": str(model), **row})
            say(" | ".join(_cells(rows[-1])))
    return pd.DataFrame(rows)


def _measured(model, positions, run):
    """Yield the rows of one model."""
    middle = positions[len(positions) // 2]
    read = round(middle / SCORED)
    a, b, c = run(forward, model), run(hooked, model), run(cached, model, middle)
    d = {n: run(kernel, model, n) for n in positions}
    neurons, error = run(neurons_taken, model, positions[0]), run(errors, model)
    every = neurons["counts"][-1]
    whole = {"b": b["a_token"] * read * every, "c": c["a_neuron"] * every}
    share = a["a_token"] / (d[middle]["seconds"] / middle)
    yield _row("(a) one forward pass", middle, a["a_token"] * read, a["peak"],
               f"{read:,} tokens, extrapolated from {a['sample']:,}; (d) costs less than (a) while fewer than {share:.1%} "
               "of the tokens are scored")
    yield _row("(b) hook and forward pass per neuron", middle, whole["b"], b["peak"],
               f"extrapolated from 1 neuron, {b['sample']:,} tokens; (b)/(d) = {whole['b'] / d[middle]['seconds']:,.0f}")
    yield _row("(c) cached residual, unembedding per neuron", middle, whole["c"], c["peak"],
               f"extrapolated from {c['sample']} neurons; (c)/(d) = {whole['c'] / d[middle]['seconds']:,.0f}")
    for n in positions:
        yield _row(f"(d) this kernel, {every:,} neurons", n, d[n]["seconds"], d[n]["peak"],
                   f"{d[n]['fallback']:.2%} of the pairs by the exact sum; {d[n]['share']:.0%} of the matrix-product speed")
    yield _row("error against float64", error["positions"], None, None,
               f"at most {error['largest']:.1e} nats, {error['of_tolerance']:.2g} of the tolerance, "
               f"over {error['neurons']} neurons")
    for name, counts, took in (("position", positions, [d[n]["seconds"] for n in positions]),
                               ("neuron", neurons["counts"], neurons["seconds"])):
        slope, offset = np.polyfit(counts, took, 1)
        off = max(abs(np.polyval((slope, offset), counts) / took - 1))
        yield _row(f"seconds by {name}s", None if name == "position" else positions[0], None, None,
                   f"{offset:.2f} s + {1e3 * slope:.3f} ms a {name}, off by at most {off:.0%} at {counts}")


def growth(models=tuple(SHAPES), positions=GROUP, *, threads=None, say=print):
    """What one checkpoint costs, by stage: read, forward, ablation (rare and common targets), statistics.

    Parameters
    ----------
    models : names in `SHAPES`, or shapes.
    positions : int, rare positions, and as many common ones.

    Returns
    -------
    pandas.DataFrame with one row a model and stage: model, stage, seconds, peak memory (GB)
    """
    run, rows = partial(alone, threads=threads), []
    for model in models:
        tokens, parts = positions / SCORED, [positions // 4, positions // 2]
        read, passed, judged = run(reading, model), run(forward, model), run(statistics, model, DOCUMENTS)
        timed = [run(kernel, model, n) for n in parts]
        ablated = np.polyval(np.polyfit(parts, [found["seconds"] for found in timed], 1), positions)
        for stage, took, peak in (("read", read["seconds"], read["peak"]),
                                  ("forward", passed["a_token"] * tokens, passed["peak"]),
                                  ("ablation", 2 * ablated, timed[-1]["peak"]),
                                  ("statistics", 2 * judged["seconds"], judged["peak"])):
            rows.append({"model": str(model), "stage": stage, "seconds": took, "peak memory (GB)": peak})
            say(f"{model} | {stage} | {took:,.3g} | {peak:.2f}")
    return pd.DataFrame(rows)


def sweeps(costs, grid):
    """Hours that sweeps take on one machine like this, from what a checkpoint of each shape costs.

    Parameters
    ----------
    costs : from `growth` ; grid : DataFrame with model (hub id of a shape) and steps (JSON), such as data/paper_grid.csv.

    Returns
    -------
    dict of the sweep's name to (checkpoints, hours)
    """
    each = costs.groupby("model")["seconds"].sum() / 3600
    hours = grid["model"].str.extract("(pythia-[0-9]+[mb])")[0].map(each)  # NaN for what is no such shape
    steps = grid["steps"].map(json.loads).map(len)
    made = {"the paper's grid": (int(steps[hours.notna()].sum()), float((hours * steps).sum()))}
    return made | {f"every checkpoint of {model}": (CHECKPOINTS, CHECKPOINTS * one) for model, one in each.items()}


def _row(what, positions, seconds, peak, note):
    return {"what": what, "positions": positions, "seconds": seconds, "peak memory (GB)": peak, "note": note}


def _cells(row):
    return [row["model"], row["what"], f"{row['positions']:,}" if row["positions"] else "",
            f"{row['seconds']:,.3g}" if row["seconds"] else "", f"{row['peak memory (GB)']:.2f}" if row["seconds"] else "",
            row["note"]]


def main(argv=None):
    """`python -m rare_token_neurons bench`: print the table of measurements in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m rare_token_neurons bench", description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS,
                        help=f"{', '.join(SHAPES)}, or a model such as smollm2 (default: {', '.join(MODELS)})")
    parser.add_argument("--positions", type=int, nargs="+", default=POSITIONS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--as-here", action="store_true", help="with huge pages and sleeping threads, as the package runs")
    parser.add_argument("--growth", action="store_true", help="what one checkpoint costs by stage, and a sweep of them")
    arguments = parser.parse_args(argv)
    if min(arguments.positions) < 1:
        parser.error("positions must be at least 1")
    for model in set(arguments.models) - set(SHAPES):
        try:
            checkpoints.locate(model)
        except (FileNotFoundError, ValueError) as error:
            parser.error(str(error))
    if arguments.growth:
        return _grown(arguments.threads)
    if not arguments.as_here:
        os.environ |= AS_ELSEWHERE  # of the processes that measure
    print("| model | what | positions | seconds | peak memory (GB) | note |\n|---|---|---|---|---|---|")
    bench(arguments.models, arguments.positions, threads=arguments.threads,
          say=lambda line: print(f"| {line} |", flush=True))
    return 0


def _grown(threads):
    """Print the table of `growth` in Markdown, and what sweeps cost."""
    print("| model | stage | seconds | peak memory (GB) |\n|---|---|---|---|")
    costs = growth(threads=threads, say=lambda line: print(f"| {line} |", flush=True))
    for name, (number, hours) in sweeps(costs, pd.read_csv(paths.DATA / "paper_grid.csv")).items():
        print(f"\n{name[:1].upper()}{name[1:]}, {number} checkpoints: {hours:.1f} hours, {hours / 8:.1f} on 8 machines.")
    return 0
