"""Families: each supported one against hooks on the whole model, each refused one with the reason."""

import pytest
import torch
from conftest import FAMILIES, LLAMA_LIKE, NEURONS, OPT, VOCABULARY, WIDTH
from oracle import exact_norms, hooked_changes
from tokenizers import Tokenizer, models
from transformers import (AutoModelForCausalLM, CohereConfig, Gemma2Config, Gemma3TextConfig, GPT2Config, Olmo2Config, OPTConfig,
                          PreTrainedTokenizerFast)

from rare_token_neurons import ablation, checkpoints, heads, prefixes, subjects, suffix, watcher, weights

POSITIONS = torch.tensor([(block, t) for block in range(6) for t in (3, 7, 14)])
by_kind = pytest.mark.parametrize("kind", FAMILIES)


# ---- supported


@by_kind
@pytest.mark.parametrize("ablated, freeze", [("mean", None), ("resample", "unigram"), ("zero", "scale")])
def test_changes_match_hooks_on_the_whole_model(tiny, tokens, kind, ablated, freeze):
    wide, narrow, where = tiny(kind, torch.float64), tiny(kind), dict(ablation=ablated, freeze=freeze, seed=3)
    loss, _, _ = hooked_changes(wide, tokens, POSITIONS, **where)
    assert loss.abs().mean() > 1e-3, "the model is too tame to test anything"
    with exact_norms(wide.model):
        assert (ablation.loss_changes(wide, ablation.capture(wide, tokens), POSITIONS, **where) - loss).abs().max() < 1e-9
    found = ablation.loss_changes(narrow, ablation.capture(narrow, tokens), POSITIONS, **where)
    assert ((found - loss).abs() <= (1e-3 * loss.abs()).clamp_min(2e-6)).all()


@by_kind
def test_the_pieces_have_one_shape_and_rebuild_the_logits(tiny, tokens, kind):
    subject, seen = tiny(kind), {}
    assert subject.w_out.shape == (WIDTH, NEURONS) and {part.shape for part in subject.w_in.values()} == {(NEURONS, WIDTH)}
    assert subject.norm_gain.shape == (WIDTH,) and subject.unembedding.shape == (VOCABULARY, WIDTH)
    tied = subject.unembedding.data_ptr() == subject.model.get_input_embeddings().weight.data_ptr()
    assert tied == kind.endswith("-tied") and subject.n_layers == 2
    subject.mlp_out.register_forward_pre_hook(lambda _, inputs: seen.update(activations=inputs[0]))
    subject.mlp_out.register_forward_hook(lambda _, inputs, output: seen.update(written=output))
    subject.final_norm.register_forward_hook(lambda _, inputs, output: seen.update(normed=output))
    with torch.no_grad():
        logits = subject.model(tokens).logits
    assert seen["activations"].shape == (*tokens.shape, NEURONS)
    written = seen["written"].view(*tokens.shape, WIDTH)
    bias = 0 if subject.mlp_out.bias is None else subject.mlp_out.bias
    torch.testing.assert_close(seen["activations"] @ subject.w_out.T + bias, written, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen["normed"] @ subject.unembedding.T, logits, rtol=1e-4, atol=1e-4)


@by_kind
def test_a_saved_checkpoint_gives_the_same_pieces(tiny, tmp_path, kind):
    made = tiny(kind)
    made.model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"w": 0}, unk_token="w"))).save_pretrained(tmp_path)
    found = checkpoints.load(str(tmp_path))
    for name in ("w_out", "unembedding", "norm_gain", *(["norm_bias"] if made.norm_bias is not None else [])):
        assert torch.equal(getattr(found, name), getattr(made, name)), name
    assert (found.family, found.norm, found.norm_eps) == (made.family, made.norm, made.norm_eps)
    assert all(torch.equal(found.w_in[name], part) for name, part in made.w_in.items())


@by_kind
def test_other_layers_run_again_as_hooks_would(tiny, tokens, kind):
    subject = tiny(kind, torch.float64)
    module = suffix.find(suffix.layers(subject)[0], suffix.MLP_OUT)

    def overwrite(_, inputs):
        values = inputs[0].clone()
        values[..., 11] = 0.0
        return (values,)

    def losses():
        with torch.no_grad():
            logits = subject.model(tokens).logits
        return torch.nn.functional.cross_entropy(logits[:, 14], tokens[:, 15], reduction="none")

    before = losses()
    hook = module.register_forward_pre_hook(overwrite)
    truth = losses() - before
    hook.remove()
    positions = torch.tensor([(block, 14) for block in range(len(tokens))])
    found = suffix.neuron_changes(subject, tokens, positions, 0, [11], ablation="zero")[:, 0]
    assert truth.abs().max() > 1e-4 and found == pytest.approx(truth, abs=1e-6)


@by_kind
def test_one_position_of_any_layer_and_the_heads_are_ablated_too(tiny, tokens, kind):
    subject, windows = tiny(kind, torch.float64), tokens[:, :11]
    found = prefixes.neuron_changes(prefixes.record(subject, windows), 1, range(subject.n_neurons), ablation="zero")
    positions = torch.tensor([[block, 9] for block in range(len(windows))])
    kept = ablation.capture(subject, windows)
    assert found == pytest.approx(ablation.loss_changes(subject, kept, positions, ablation="zero"), abs=1e-6)
    effects = heads.effects(subject, tokens, positions, [0, 5])
    assert effects.loss_changes.shape == (8, 6) and effects.loss_changes.abs().max() > 1e-4


@by_kind
def test_weight_spectra_find_every_matrix(tiny, kind):
    subject = tiny(kind)
    assert weights.rows_of(subject)["out"].shape == (NEURONS, WIDTH)
    found = watcher.linear_layers(subject.model)
    assert len(found) == 2 * {"gpt2": 4, "opt": 6}.get(subject.family, 7)


# ---- refused


def refused(config, **settings):
    model = AutoModelForCausalLM.from_config(config(vocab_size=20, **settings))
    with pytest.raises(ValueError) as error:
        subjects.dissect(model, model_id="own")
    assert "\n" not in str(error.value) and str(error.value).startswith("own ")
    return str(error.value)


@pytest.mark.parametrize("config", [Gemma2Config, Gemma3TextConfig, Olmo2Config])
def test_a_norm_after_the_last_mlp_is_refused(config):
    settings = LLAMA_LIKE | ({"final_logit_softcapping": None} if config is not Olmo2Config else {"pad_token_id": None})
    assert "a norm follows its last MLP" in refused(config, **settings)


def test_capped_and_scaled_logits_are_refused():
    assert "caps its logits after the unembedding (final_logit_softcapping)" in refused(Gemma2Config, **LLAMA_LIKE)
    assert "scales its logits after the unembedding (logit_scale)" in refused(CohereConfig, **LLAMA_LIKE, pad_token_id=None)


@pytest.mark.parametrize("settings", [{"do_layer_norm_before": False}, {"word_embed_proj_dim": 16}])
def test_post_norm_opt_is_refused(settings):
    assert "post-norm" in refused(OPTConfig, **OPT | {"pad_token_id": 1} | settings)


def test_an_unknown_family_is_named():
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    model.config.model_type = "unheard-of"
    with pytest.raises(ValueError, match="^own is of the family 'unheard-of'; known are gpt_neox, gpt2, opt, llama"):
        subjects.dissect(model, model_id="own")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_weight_that_is_not_finite_is_named(tiny, value):
    model = tiny("gpt2").model
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 2] = value
    with pytest.raises(ValueError, match="^The weight transformer.h.1.mlp.c_fc.weight of own holds values that are not finite"):
        subjects.dissect(model, model_id="own")
