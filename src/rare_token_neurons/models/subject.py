"""A model taken apart: the pieces of its final layer under one contract, whatever the family.

A family is supported where the last MLP writes into the final residual stream linearly or through one RMS norm, and
where norm and unembedding alone lead from there to the logits: the ablation arithmetic rests on both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Subject:
    """A language model and the pieces of its final layer, under one name whatever the family.

    Shapes: d = width of the residual stream. No weight requires a gradient.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    model_id: str
    revision: str | None
    step: int | None
    mlp_in: dict[str, nn.Module]  # their OUTPUT is what the nonlinearity meets, (..., neurons): "in", or "gate" and "up"
    mlp_out: nn.Module  # its INPUT is the neurons' activations, (blocks, length, neurons)
    final_norm: nn.Module  # its INPUT is the final residual stream, (blocks, length, d)
    norm: str  # "layer" (centres) or "rms"
    norm_gain: Tensor  # (d,)
    norm_bias: Tensor | None  # (d,)
    norm_eps: float
    w_out: Tensor  # (d, neurons): column i holds the output weights of neuron i
    w_in: dict[str, Tensor]  # each (neurons, d): row i holds the input weights of neuron i
    unembedding: Tensor  # (vocabulary, d)
    unembedding_bias: Tensor | None  # (vocabulary,)
    mlp_norm_gain: Tensor | None = None  # (d,) of the RMS norm between MLP and residual stream, where there is one
    mlp_norm_eps: float | None = None
    unigram_counts: Tensor | None = None  # (vocabulary,) float64, for the unigram direction
    n_positions: int | None = None  # tokens in the longest block, where each position has an embedding of its own

    @property
    def n_neurons(self):
        """Neurons of the final layer's MLP."""
        return self.w_out.shape[1]

    @property
    def gated(self):
        """Whether a neuron is act(gate) * up. Its sign is arbitrary then: with its row of up and its column of w_out flipped
        the model computes the same."""
        return "gate" in self.w_in

    @property
    def d_model(self):
        """Width of the residual stream."""
        return self.w_out.shape[0]

    @property
    def n_vocab(self):
        """Rows of the unembedding."""
        return self.unembedding.shape[0]

    @property
    def n_layers(self):
        """Layers of the model."""
        return self.model.config.num_hidden_layers

    @property
    def dtype(self):
        """float32 or float64."""
        return self.w_out.dtype

    @property
    def device(self):
        """Where the weights are."""
        return self.w_out.device


# ---- where each family keeps its pieces


def _gpt_neox(model):
    mlp = model.gpt_neox.layers[-1].mlp
    return {"mlp_out": mlp.dense_4h_to_h, "final_norm": model.gpt_neox.final_layer_norm, "norm": "layer",
            "mlp_in": {"in": mlp.dense_h_to_4h}}


def _gpt2(model):
    mlp = model.transformer.h[-1].mlp  # Conv1D holds its weights the other way round, (inputs, outputs)
    return {"mlp_out": mlp.c_proj, "final_norm": model.transformer.ln_f, "norm": "layer", "w_out": mlp.c_proj.weight.T,
            "mlp_in": {"in": mlp.c_fc}, "w_in": {"in": mlp.c_fc.weight.T}, "n_positions": model.config.n_positions}


def _opt(model):
    decoder = model.model.decoder
    if not model.config.do_layer_norm_before:
        raise ValueError("its layers end in a norm, as OPT-350m's do, so that its last MLP does not write linearly into "
                         "what is unembedded")
    if decoder.project_out is not None:
        raise ValueError("a projection stands between its final norm and its unembedding")
    if decoder.final_layer_norm is None:
        raise ValueError("it has no norm before its unembedding")
    for layer in decoder.layers:
        _keep_blocks(layer)
    last = decoder.layers[-1]
    return {"mlp_out": last.fc2, "final_norm": decoder.final_layer_norm, "norm": "layer", "mlp_in": {"in": last.fc1},
            "n_positions": model.config.max_position_embeddings}


def _keep_blocks(layer):
    """OPT flattens (blocks, length, d) before its MLP: with these hooks fc2 reads whole blocks, as in every other family."""
    shape = []

    def enter(module, inputs, named):
        shape[:] = (inputs[0] if inputs else named["hidden_states"]).shape[:-1]

    layer.register_forward_pre_hook(enter, with_kwargs=True)
    layer.fc2.register_forward_pre_hook(lambda module, inputs: (inputs[0].view(*shape, -1),))
    layer.fc2.register_forward_hook(lambda module, inputs, output: output.flatten(0, -2))


def _phi(model):
    mlp = model.model.layers[-1].mlp
    return {"mlp_out": mlp.fc2, "final_norm": model.model.final_layernorm, "norm": "layer", "mlp_in": {"in": mlp.fc1}}


def _llama(model):
    mlp = model.model.layers[-1].mlp
    return {"mlp_out": mlp.down_proj, "final_norm": model.model.norm, "norm": "rms",
            "mlp_in": {"gate": mlp.gate_proj, "up": mlp.up_proj}}


def _olmo(model):
    return _llama(model) | {"norm": "layer", "norm_eps": 1e-5}  # a layer norm without weights, its eps written in the code


def _olmo2(model):
    norm = model.model.layers[-1].post_feedforward_layernorm
    return _llama(model) | {"mlp_norm_gain": norm.weight, "mlp_norm_eps": norm.variance_epsilon}


def _gemma3(model):
    pieces, norm = _llama(model), model.model.layers[-1].post_feedforward_layernorm
    return pieces | {"norm_gain": 1 + pieces["final_norm"].weight, "mlp_norm_gain": 1 + norm.weight,
                     "mlp_norm_eps": norm.eps}


FAMILIES = {"gpt_neox": _gpt_neox, "gpt2": _gpt2, "opt": _opt, "phi": _phi, "llama": _llama, "mistral": _llama,
            "qwen2": _llama, "qwen3": _llama, "smollm3": _llama, "olmo": _olmo, "olmo2": _olmo2, "olmo3": _olmo2,
            "gemma3_text": _gemma3}
AFTER_THE_HEAD = {"final_logit_softcapping": "caps", "logit_scale": "scales", "logits_scaling": "scales"}


# ---- any family


def dissect(model, tokenizer=None, *, model_id="", revision=None, step=None):
    """The final layer's pieces of a Hugging Face causal language model.

    Parameters
    ----------
    model : PreTrainedModel of a family in `FAMILIES`, any floating dtype.

    Returns
    -------
    Subject

    Raises
    ------
    ValueError
        An unknown family, or one that the arithmetic does not fit (the sentence says why); a weight that is not finite.
    """
    name, family = model_id or "the model", model.config.model_type
    for setting, what in AFTER_THE_HEAD.items():
        if getattr(model.config, setting, None) not in (None, 1.0):
            raise ValueError(f"{name} cannot be measured: it {what} its logits after the unembedding ({setting}).")
    if family not in FAMILIES:
        raise ValueError(f"{name} is of the family {family!r}; known are {', '.join(FAMILIES)}.")
    model.requires_grad_(False).eval()
    for weight_name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"The weight {weight_name} of {name} holds values that are not finite.")
    head = model.get_output_embeddings()
    try:
        pieces = FAMILIES[family](model)
    except ValueError as error:
        raise ValueError(f"{name} cannot be measured: {error}.") from None
    weights = {"w_out": pieces["mlp_out"].weight, "w_in": {name: part.weight for name, part in pieces["mlp_in"].items()}}
    pieces = _norm(pieces["final_norm"], head.weight) | weights | pieces
    return Subject(model=model, tokenizer=tokenizer, model_id=model_id, revision=revision, step=step,
                   unembedding=head.weight, unembedding_bias=getattr(head, "bias", None), **pieces)


def _norm(module, unembedding):
    """Gain, bias and eps of a norm; a norm without weights has gain 1."""
    gain = getattr(module, "weight", None)
    eps = next((getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)), None)
    return {"norm_gain": unembedding.new_ones(unembedding.shape[1]) if gain is None else gain,
            "norm_bias": getattr(module, "bias", None), "norm_eps": eps}
