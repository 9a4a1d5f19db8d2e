"""Training mini-pythia: a suite of checkpoints in the shape the hub has them.

The order of the data is a function of (seed, step) alone, so a training state is weights, optimiser and step; a run
that was killed goes on from its last state and ends with the same bits (same machine, same number of threads).
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from rare_token_neurons import files
from rare_token_neurons.paths import CACHE, MINI_PYTHIA, RESULTS, shown
from rare_token_neurons.text import documents as texts, rarity

VOCABULARY = 8_192
STEPS = 6_144  # of 4,096 tokens: 25 M tokens
BATCH = 16  # blocks of 256 tokens
SAVED_STEPS = (0, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 6_144)
LEARNING_RATE, WARM_UP, FINAL_SHARE = 2e-3, 128, 0.1
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
EVALUATE_EVERY, EVALUATION_BLOCKS = 256, 128
STATE_EVERY = 300.0  # seconds
END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts):
    """A byte-level BPE tokenizer of 8,192 entries.

    Parameters
    ----------
    texts : iterable of str, the train split.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT,
                                   clean_up_tokenization_spaces=False)


def pythia(seed, *, width=192, layers=3, heads=6, mlp=1_536, vocabulary=VOCABULARY):
    """A GPT-NeoX with Pythia's settings and Pythia's initialisation, float32.

    Initialisation as in GPT-NeoX: "small init" (Nguyen and Salazar 2019), N(0, 2 / (5 d)), and for the two matrices
    that write into the residual stream "wang init", N(0, (2 / (layers sqrt(d)))^2); biases 0.
    """
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=mlp, max_position_embeddings=rarity.BLOCK, hidden_act="gelu", use_parallel_residual=True,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, attention_dropout=0.0, hidden_dropout=0.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25})
    model = GPTNeoXForCausalLM(config)
    small, wang = math.sqrt(2 / (5 * width)), 2 / (layers * math.sqrt(width))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                writes = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
                weight.normal_(0.0, wang if writes else small)
            elif "norm" not in name:
                weight.zero_()
    return model


def learning_rate(step, steps):
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    if step < WARM_UP:
        return LEARNING_RATE * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LEARNING_RATE * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


class Batches:
    """The batch of every step, int64 (BATCH, BLOCK), as a function of (seed, step)."""

    def __init__(self, ids, seed):
        self.ids, self.seed, self.epoch = ids, seed, None
        self.per_epoch = sum(len(tokens) // rarity.BLOCK for tokens in ids) // BATCH

    def __getitem__(self, step):
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            generator = np.random.default_rng([self.seed, epoch])
            tokens = rarity.blocks(self.ids, range(len(self.ids)), offset=generator).tokens
            self.tokens, self.epoch = tokens[generator.permutation(len(tokens))], epoch
        return torch.from_numpy(self.tokens[place * BATCH : (place + 1) * BATCH])


def half_is_fast():
    """Whether this processor multiplies bfloat16 matrices at speed; with AVX2 alone they take a hundred times as long."""
    return not torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "DEFAULT"))


def token_losses(model, tokens):
    """Loss of every next token in nats, float32 (blocks, length - 1), under bfloat16 autocast where that is fast."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half_is_fast()):
        hidden = model.base_model(tokens).last_hidden_state[:, :-1].flatten(0, 1)  # (blocks * (length - 1), d)
        logits = model.get_output_embeddings()(hidden)  # slicing these instead would copy them
    losses = cross_entropy(logits.float(), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1)


@torch.no_grad()
def evaluate(model, tokens, groups):
    """Mean held-out loss in nats: over all scored positions, over rare and over common targets."""
    losses = torch.cat([token_losses(model, part) for part in tokens.split(BATCH)])
    means = {"held_out": losses[:, rarity.FIRST :].mean().item()}
    for name, positions in groups.items():
        means[name] = losses[positions[:, 0], positions[:, 1]].mean().item()
    return means


def _optimizer(model):
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": WEIGHT_DECAY},
                              {"params": vectors, "weight_decay": 0.0}], lr=LEARNING_RATE, betas=BETAS)


def train(model, batches, steps, state_path, *, saved_steps, save, measure):
    """Train in place, from the saved state where there is one.

    Parameters
    ----------
    model : GPTNeoXForCausalLM, freshly initialised.
    batches : indexable by step, each int64 (batch, length).
    state_path : Path, rewritten every `STATE_EVERY` seconds.
    save : callable (model, step), called at each of `saved_steps`.
    measure : callable (model) -> dict, its values go into the log at `saved_steps` and every `EVALUATE_EVERY` steps.

    Returns
    -------
    list of dict, the training log: step, tokens, train_loss (mean since the last row) and what `measure` returns.
    """
    optimizer = _optimizer(model)
    start, log, recent = 0, [], []
    if Path(state_path).exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, log, recent = state["step"], state["log"], state["recent"]
    saved_at = time.monotonic()
    for step in tqdm(range(start, steps + 1), initial=start, total=steps + 1, mininterval=30, unit="step"):
        if step in saved_steps:
            save(model, step)
        if (step in saved_steps or step % EVALUATE_EVERY == 0) and not (log and log[-1]["step"] == step):
            train_loss = float(np.mean(recent)) if recent else math.nan
            log.append({"step": step, "tokens": step * batches[0].numel(), "train_loss": train_loss, **measure(model)})
            recent = []
        if step == steps or time.monotonic() - saved_at > STATE_EVERY:
            with files.new_file(state_path) as temporary:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "log": log,
                            "recent": recent}, temporary)
            saved_at = time.monotonic()
        if step == steps:
            return log
        loss = token_losses(model, batches[step]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())


def save_checkpoint(model, folder):
    """A Hugging Face checkpoint with bfloat16 safetensors weights, in place of one that an earlier run left there."""
    with files.new_folder(folder, replace=True) as temporary:
        rounded = GPTNeoXForCausalLM(model.config).to(torch.bfloat16)
        rounded.load_state_dict(model.state_dict())
        rounded.save_pretrained(temporary)


def suite(seed=0, steps=STEPS):
    """Train the suite: tokenizer, unigram counts, checkpoints, training log.

    Seed 0 at the full number of steps is `data/mini-pythia`; others go to `data/cache/mini-pythia-seed<S>-steps<N>`.
    Takes about 80 minutes on 2 cores; ends with a held-out loss of about 3.2 nats.
    """
    name = "mini-pythia" if (seed, steps) == (0, STEPS) else f"mini-pythia-seed{seed}-steps{steps}"
    folder = MINI_PYTHIA if name == "mini-pythia" else CACHE / name
    table = texts.documents()
    train_texts, held_out = (table.loc[table["split"] == split, "text"] for split in ("train", "held-out"))
    if not (MINI_PYTHIA / "tokenizer.json").exists():
        train_tokenizer(train_texts).save_pretrained(MINI_PYTHIA)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MINI_PYTHIA)
    ids = texts.encode(tokenizer, train_texts)
    seen = rarity.unigram_counts(ids, VOCABULARY)
    for place in {MINI_PYTHIA, folder}:
        with files.new_file(place / rarity.COUNTS_FILE) as temporary:
            np.save(temporary, seen)
        tokenizer.save_pretrained(place)
    batches = Batches(ids, seed)
    print(f"{len(table):,} documents; {sum(map(len, ids)):,} training tokens; {steps / batches.per_epoch:.2f} epochs")
    tokens, groups = evaluation_set(tokenizer, held_out, seen)
    model = pythia(seed)
    saved = {step for step in SAVED_STEPS if step < steps} | {steps}
    log = train(model, batches, steps, folder / "training-state.pt", saved_steps=saved,
                save=lambda model, step: save_checkpoint(model, folder / f"step{step}"),
                measure=lambda model: evaluate(model, tokens, groups))
    path = RESULTS / name / "training_log.parquet"
    files.write_table(path, pd.DataFrame(log).assign(epochs=lambda row: row["step"] / batches.per_epoch))
    print(f"Done: {shown(folder)}, {shown(path)}")


def evaluation_set(tokenizer, held_out, counts):
    """Fixed held-out blocks, int64 (EVALUATION_BLOCKS, BLOCK), and their rare and common positions."""
    ids = texts.encode(tokenizer, held_out)
    tokens = rarity.blocks(ids, range(len(ids))).tokens
    tokens = tokens[np.random.default_rng(0).permutation(len(tokens))[:EVALUATION_BLOCKS]]
    words = rarity.vocabulary(tokenizer)
    rare, common, _ = rarity.rare_tokens(counts, words["word"].to_numpy(), 50)
    return torch.from_numpy(tokens), {name: rarity.candidate_positions(tokens, chosen, words)
                                      for name, chosen in (("rare", rare), ("common", common))}


def main(argv=None):
    """Command line: train a suite."""
    parser = argparse.ArgumentParser(prog="python -m rare_token_neurons suite", description=suite.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args(argv)
    suite(arguments.seed, arguments.steps)
