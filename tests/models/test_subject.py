"""Families: each supported one against hooks on the whole model, each refused one with the reason."""

import copy
import re

import pytest
import torch
from oracle import exact_norms, hooked_changes
from own_model import refused
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS, FAMILIES, LLAMA_LIKE, NEURONS, OPT, VOCABULARY, WIDTH
from tokenizers import Tokenizer, models
from transformers import (AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig, OPTConfig,
                          PreTrainedTokenizerFast, VaultGemmaConfig)

from rare_token_neurons.ablation.capture import capture, ingredients
from rare_token_neurons.ablation.neurons import loss_changes
from rare_token_neurons.models import checkpoints
from rare_token_neurons.models.subject import dissect
from rare_token_neurons.statistics import spectra
from rare_token_neurons.tables import weights

POSITIONS = torch.tensor([(block, t) for block in range(6) for t in (3, 7, 14)])
by_kind = pytest.mark.parametrize("kind", FAMILIES)


def save(model, folder):
    """A checkpoint with a tokenizer of one word."""
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"w": 0},
                                                                        unk_token="w"))).save_pretrained(folder)


# ---- supported


@by_kind
@pytest.mark.parametrize("ablated, freeze", [("mean", None), ("resample", "unigram"), ("zero", "scale")])
def test_changes_match_hooks_on_the_whole_model(tiny, tokens, kind, ablated, freeze):
    wide, narrow, where = tiny(kind, torch.float64), tiny(kind), dict(ablation=ablated, freeze=freeze, seed=3)
    loss, _, _ = hooked_changes(wide, tokens, POSITIONS, **where)
    assert loss.abs().mean() > 1e-3, "the model is too tame to test anything"
    with exact_norms(wide.model):
        assert (loss_changes(wide, capture(wide, tokens), POSITIONS, **where) - loss).abs().max() < 1e-9
    found = loss_changes(narrow, capture(narrow, tokens), POSITIONS, **where)
    assert ((found - loss).abs() <= (1e-3 * loss.abs()).clamp_min(2e-6)).all()


@by_kind
def test_the_pieces_have_one_shape_and_rebuild_the_logits(tiny, tokens, kind):
    subject, seen = tiny(kind), {}
    assert subject.w_out.shape == (WIDTH, NEURONS)
    assert {part.shape for part in subject.w_in.values()} == {(NEURONS, WIDTH)}
    assert subject.norm_gain.shape == (WIDTH,) and subject.unembedding.shape == (VOCABULARY, WIDTH)
    tied = subject.unembedding.data_ptr() == subject.model.get_input_embeddings().weight.data_ptr()
    assert tied == kind.endswith("-tied") and subject.n_layers == 2
    assert (subject.unembedding_bias is not None) == kind.startswith("phi")
    subject.mlp_out.register_forward_pre_hook(lambda _, inputs: seen.update(activations=inputs[0]))
    subject.mlp_out.register_forward_hook(lambda _, inputs, output: seen.update(written=output))
    subject.final_norm.register_forward_hook(lambda _, inputs, output: seen.update(residual=inputs[0]))
    with torch.no_grad():
        logits = subject.model(tokens).logits
    assert seen["activations"].shape == (*tokens.shape, NEURONS)
    written = seen["written"].view(*tokens.shape, WIDTH)
    bias = 0 if subject.mlp_out.bias is None else subject.mlp_out.bias
    torch.testing.assert_close(seen["activations"] @ subject.w_out.T + bias, written, rtol=1e-4, atol=1e-4)
    stream = seen["residual"] - seen["residual"].mean(-1, keepdim=True) if subject.norm == "layer" else seen["residual"]
    normed = subject.norm_gain * stream * (stream.square().mean(-1, keepdim=True) + subject.norm_eps).rsqrt()
    normed = normed if subject.norm_bias is None else normed + subject.norm_bias
    rebuilt = torch.nn.functional.linear(normed, subject.unembedding, subject.unembedding_bias)
    torch.testing.assert_close(rebuilt, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*BUILDERS, *FAMILIES])
def test_a_neuron_is_made_of_what_the_last_mlp_reads(tiny, tokens, kind):
    """Against hooks on the whole model, without those that `capture` sets: the last MLP's input by hand."""
    subject, read = tiny(kind), []
    mlp = next(module for module in subject.model.modules() if subject.mlp_out in module.children())  # OPT: the layer
    biases = {name: getattr(part, "bias", None) for name, part in subject.mlp_in.items()}
    first = next(iter(subject.mlp_in.values()))
    hook = first.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        subject.model(tokens)
    hook.remove()
    positions = POSITIONS[torch.randperm(len(POSITIONS), generator=torch.Generator().manual_seed(0))]
    block, t = positions.unbind(1)
    at = read[0].view(*tokens.shape, WIDTH)[block, t]
    kept = capture(subject, tokens)
    found = ingredients(subject, kept.only(positions))
    assert found.keys() == subject.w_in.keys() | {"activation"} and not first._forward_hooks
    for name, weight in subject.w_in.items():
        expected = at @ weight.T + (0 if biases[name] is None else biases[name])
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["activation"], kept.activations[block, t - kept.first], rtol=1e-4, atol=1e-5)
    act = next(part for name, part in mlp.named_modules() if name.split(".")[-1] in ("act", "act_fn", "activation_fn"))
    assert subject.gated == ("up" in found)
    made = act(found["gate"]) * found["up"] if subject.gated else act(found["in"])
    torch.testing.assert_close(found["activation"], made, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["olmo", "opt"])  # opt's MLP remembers the shape of its blocks
def test_a_capture_is_the_same_on_any_number_of_threads(tiny, kind):
    """One thread has two passes of a block each at once, three have one pass of three blocks, and one of what is left."""
    subject, threads = tiny(kind), torch.get_num_threads()
    tokens, kept = torch.randint(subject.n_vocab, (5, 16), generator=torch.Generator().manual_seed(0)), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            kept.append(capture(subject, tokens))
    finally:
        torch.set_num_threads(threads)
    for name in ("activations", "residual", "entering"):
        torch.testing.assert_close(*(getattr(one, name) for one in kept))



@pytest.mark.parametrize("kind", [*BUILDERS, *FAMILIES])
def test_a_gated_neuron_has_no_sign_of_its_own_and_another_has(tiny, tokens, kind):
    subject = tiny(kind)
    expected, some = subject.model(tokens).logits.clone(), torch.randperm(NEURONS)[: NEURONS // 2]
    subject.w_in["up" if subject.gated else "in"][some] *= -1
    subject.w_out[:, some] *= -1
    moved = (subject.model(tokens).logits - expected).abs().max()
    assert moved < 1e-5 if subject.gated else moved > 0.1


@by_kind
def test_a_saved_checkpoint_gives_the_same_pieces(tiny, tmp_path, kind):
    made = tiny(kind)
    save(made.model, tmp_path)
    found = checkpoints.load(str(tmp_path))
    for name in ("w_out", "unembedding", "unembedding_bias", "norm_gain", "norm_bias", "mlp_norm_gain"):
        old, new = getattr(made, name), getattr(found, name)
        assert new is None if old is None else torch.equal(new, old), name
    assert (found.norm, found.norm_eps, found.mlp_norm_eps) == (made.norm, made.norm_eps, made.mlp_norm_eps)
    assert found.w_in.keys() == made.w_in.keys() and found.n_positions == made.n_positions
    assert all(torch.equal(found.w_in[name], part) for name, part in made.w_in.items())


def test_gpt2_is_read_as_the_hub_holds_it(tiny, tmp_path):
    """The first files' names have no prefix, and its mask is among them
    (https://github.com/onnxruntime/mobius/pull/113)."""
    made = tiny("gpt2-tied")
    save(made.model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): part for name, part in saved.items()}
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(2)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = checkpoints.load(str(tmp_path))
    assert torch.equal(found.w_out, made.w_out) and torch.equal(found.unembedding, made.unembedding)


def test_opt_predicts_the_same_taken_apart_once_or_twice(tiny, tokens):
    """The hooks that keep its blocks whole change nothing else."""
    subject = tiny("opt")
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(subject.model.config)).eval()
    plain.load_state_dict(subject.model.state_dict())
    with torch.no_grad():
        expected = plain(tokens).logits
        assert torch.equal(subject.model(tokens).logits, expected)
        assert torch.equal(dissect(subject.model).model(tokens).logits, expected)


@by_kind
def test_weight_spectra_find_every_matrix(tiny, kind):
    subject = tiny(kind)
    assert weights.rows_of(subject)["out"].shape == (NEURONS, WIDTH)
    found = spectra.linear_layers(subject.model)
    assert len(found) == 2 * {"gpt2": 4, "opt": 6, "phi": 6}.get(kind.removesuffix("-tied"), 7)


@pytest.mark.parametrize("kind", ["gpt2", "opt-tied"])
def test_blocks_longer_than_the_learned_positions_are_refused(tiny, kind):
    with pytest.raises(ValueError,
                       match="^Blocks of 17 tokens are too long for the model, which has embeddings for 16"):
        capture(tiny(kind), torch.zeros(2, 17, dtype=torch.int64))


# ---- refused


CAPS = "caps its logits after the unembedding (final_logit_softcapping)"
POST = {"do_layer_norm_before": False}


@pytest.mark.parametrize("config, settings, what", [
    (Gemma2Config, {}, CAPS), (VaultGemmaConfig, {}, CAPS),
    (CohereConfig, {}, "scales its logits after the unembedding (logit_scale)"),
    (GraniteConfig, {"logits_scaling": 8.0}, "scales its logits after the unembedding (logits_scaling)"),
    (OPTConfig, POST, "its layers end in a norm, as OPT-350m's do"),
    (OPTConfig, POST | {"word_embed_proj_dim": 16}, "its layers end in a norm, as OPT-350m's do"),
    (OPTConfig, {"word_embed_proj_dim": 16}, "a projection stands between its final norm and its unembedding"),
    (OPTConfig, {"_remove_final_layer_norm": True}, "it has no norm before its unembedding")])
def test_a_family_that_the_arithmetic_does_not_fit_is_refused_with_the_reason(tmp_path, config, settings, what):
    shape = OPT | {"pad_token_id": 1} if config is OPTConfig else LLAMA_LIKE | {"pad_token_id": None}
    save(AutoModelForCausalLM.from_config(config(vocab_size=20, **shape | settings)), tmp_path)
    with refused(ValueError, rf"^{tmp_path} cannot be measured: .*{re.escape(what)}.*\.$"):
        checkpoints.load(str(tmp_path))


def test_an_unknown_family_is_named():
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    model.config.model_type = "unheard-of"
    known = "gpt_neox, gpt2, opt, phi, llama, mistral, qwen2, qwen3, smollm3, olmo, olmo2, olmo3, gemma3_text"
    with pytest.raises(ValueError, match=rf"^own is of the family 'unheard-of'; known are {known}\.$"):
        dissect(model, model_id="own")


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("kind, name", [
    ("gpt2", "transformer.h.1.mlp.c_fc.weight"), ("opt-tied", "model.decoder.layers.0.fc2.bias"),
    ("phi", "lm_head.bias"), ("olmo", "model.layers.1.mlp.up_proj.weight")])
def test_the_weight_that_is_not_finite_is_named(tiny, tmp_path, kind, name, value):
    model = tiny(kind).model
    model.get_parameter(name).view(-1)[3] = value
    save(model, tmp_path)
    with pytest.raises(ValueError, match=f"^The weight {name} of .* holds values that are not finite"):
        checkpoints.load(str(tmp_path))
