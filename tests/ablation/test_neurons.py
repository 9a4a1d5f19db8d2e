"""The ablation arithmetic against brute force: hooks on the whole model, and float64 on the same capture."""

import math
from dataclasses import replace

import pytest
import torch
from oracle import captured_changes, exact_norms, hooked_changes, moved
from tiny_models import BUILDERS, VOCABULARY
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from rare_token_neurons.ablation import cumulants, neurons as kernel
from rare_token_neurons.ablation.capture import ABLATIONS, capture, references
from rare_token_neurons.ablation.neurons import FREEZES, divergences, influence, loss_changes, losses
from rare_token_neurons.ablation.readout import predict_at, readout_of
from rare_token_neurons.models import checkpoints

DOCUMENTS = torch.tensor([0, 0, 1, 2, 2, 3])
POSITIONS = torch.tensor([(block, t) for block in range(6) for t in (3, 7, 14)])
CASES = [("mean", None), ("zero", None), ("resample", None), ("mean", "unigram"), ("mean", "scale"),
         ("resample", "unigram"), ("zero", "scale")]
NORMED = ("olmo2", "gemma3-tied")  # a norm follows the MLP
WITH_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
DEVICES = ["cpu", pytest.param("cuda", marks=WITH_CUDA)]


def tolerance(change, absolute=1e-6):
    return (1e-3 * change.abs()).clamp_min(absolute)


def captured(subject, tokens):
    with exact_norms(subject.model):
        return capture(subject, tokens.to(subject.device), documents=DOCUMENTS)


@pytest.fixture
def usual(tiny, tokens):
    """A small model and its capture."""
    subject = tiny("neox-parallel")
    return subject, captured(subject, tokens)


# ---- every (position, neuron) against one whole forward pass a neuron


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "ablated", "freeze"), [
    (kind, *case) for kind in (*BUILDERS, *NORMED) for case in CASES])
def test_changes_match_hooks_on_the_whole_model(tiny, tokens, kind, ablated, freeze, device):
    wide = tiny(kind, torch.float64, device=device)
    positions, where = POSITIONS.to(device), dict(ablation=ablated, freeze=freeze, seed=3)
    loss, entropy, unigram = hooked_changes(wide, tokens.to(device), positions, documents=DOCUMENTS, **where)
    assert loss.abs().median() > 1e-3, "the model is too tame to test anything"

    for subject, relative, least, of_entropy in ((wide, 0, 1e-9, 1e-8), (tiny(kind, device=device), 1e-3, 1e-6, 1e-5)):
        kept = captured(subject, tokens)
        changes = loss_changes(subject, kept, positions, **where)
        found = influence(subject, kept, positions, torch.arange(len(positions)), **where)
        assert changes.dtype == subject.dtype
        for part, truth, floor in ((changes, loss, least), (found.change_sum, loss, least),
                                   (found.unigram_sum, unigram, least), (found.entropy_sum, entropy, of_entropy)):
            assert ((part - truth).abs() <= (relative * truth.abs()).clamp_min(floor)).all()


@pytest.mark.parametrize("how", ["mean", "zero"])
def test_a_capture_at_some_positions_alone_gives_what_the_whole_one_gives_there(usual, how):
    subject, kept = usual
    whole = influence(subject, kept, POSITIONS, ablation=how)
    alone = influence(subject, kept.only(POSITIONS), ablation=how)
    assert alone.n.tolist() == [6, 3, 6, 3] and (alone.abs_sum > 0).any()
    for name in ("documents", "n", "change_sum", "abs_sum", "unigram_sum"):
        torch.testing.assert_close(getattr(alone, name), getattr(whole, name), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind, strength", [("neox-parallel", 2.0), ("olmo2", 1.0)])
def test_order_3_serves_most_pairs_of_a_gentle_model(tiny, tokens, kind, strength):
    subject = tiny(kind, strength=strength, vocabulary=3000)
    kept = captured(subject, tokens)
    expected, _ = captured_changes(subject, kept, kept.positions, torch.arange(48))
    found = influence(subject, kept, kept.positions, torch.arange(len(kept.positions)))
    assert found.fallback < 0.2
    assert ((found.change_sum - expected).abs() <= tolerance(expected)).all()


# ---- the guard, on a real language model


@pytest.fixture(scope="module")
def trained():
    """A trained model and its capture."""
    try:
        subject = checkpoints.load("smollm2")
    except FileNotFoundError:
        subject = checkpoints.load("mini-pythia")
    text = ("The old captain looked at the sea, and said nothing for a long while; "
            "the crew waited below the mast in silence. ") * 3
    return subject, capture(subject, torch.tensor(subject.tokenizer(text)["input_ids"][:64])[None])


@pytest.fixture(scope="module", params=["as it is", "a norm after its MLP"])
def real(request, trained):
    """A trained model, its capture, positions, its 24 most influential neurons and as many others, truth, fallback.

    The norm gives what the MLP writes the length that it has at a typical position.
    """
    subject, kept = trained
    if request.param != "as it is":
        m = kept.activations @ subject.w_out.T
        length = m.square().mean(-1, keepdim=True).sqrt()
        subject = replace(subject, mlp_norm_gain=length.median().expand(subject.d_model), mlp_norm_eps=1e-6)
        kept = replace(kept, residual=kept.residual + m * (length.median() / length - 1))
    positions = kept.positions[::4]
    found = influence(subject, kept, positions, entropy=False)
    order = found.mean_abs.argsort(descending=True)
    neurons = torch.cat([order[:24], order[24::len(order) // 24]])
    return subject, kept, positions, neurons, captured_changes(subject, kept, positions, neurons)[0], found.fallback


def test_no_error_above_the_tolerance_goes_unflagged(real, monkeypatch):
    subject, kept, positions, neurons, expected, _ = real
    assert ((loss_changes(subject, kept, positions, neurons=neurons) - expected).abs() <= tolerance(expected)).all()
    monkeypatch.setattr(kernel, "settle", lambda *arguments: None)
    without = (loss_changes(subject, kept, positions, neurons=neurons) - expected).abs()
    assert (without > tolerance(expected, 1e-5)).any(), "the comparison would not notice a missing fallback"


def test_the_fallback_is_for_few_pairs(real):
    assert 0 < real[-1] < 0.12


# ---- first moments, in the width of the residual stream


@pytest.mark.parametrize("how", ["as it is", "unembedding x 10", "one row for all"])
@pytest.mark.parametrize(("kind", "freeze"), [("neox-parallel", None), ("neox-parallel", "unigram"),
                                              ("llama-tied", None), ("olmo2", None), ("olmo2", "unigram")])
def test_moments_are_those_over_the_vocabulary(tiny, tokens, kind, freeze, how):
    subject = tiny(kind)
    if how == "one row for all":  # what the tokens share must not drown what tells them apart
        subject.unembedding.add_(1e3 * subject.unembedding.std() * torch.randn(subject.d_model))
    elif how != "as it is":
        harden(subject, how)
    kept, readout = captured(subject, tokens), readout_of(subject, freeze)
    base, u = predict_at(readout, subject, kept, POSITIONS, 1e-4), readout.outward(subject.w_out)
    found = cumulants.moments(readout, base, cumulants.mean_rows(readout, base, True), u, True)
    rows = subject.unembedding.double() - base.centre.double()
    if freeze:
        rows -= readout.direction.double()[:, None] * readout.along
    b, p, f = rows @ (readout.gain.double()[:, None] * u), base.log_p.double().exp(), base.f.double()
    z = base.log_p.double() + base.entropy.double()[:, None]
    factors = {"f": f, "z": z} | ({} if base.written is None else {"g": base.written.g.double()})
    names = {"b", "fb", "ffb", "bb", "fbb", "bbb", "zb", "zfb", "zbb"}
    names |= set() if base.written is None else {"gb", "fgb", "ggb", "gbb", "zgb"}
    assert found.of.keys() == names
    for name in names:
        power = b ** name.count("b")
        weight = math.prod((factors[factor] for factor in name.rstrip("b")), start=p)
        allowed = 2e-6 * weight.abs().sum(1, keepdim=True) * power.abs().amax(0)
        assert ((found.of[name] - weight @ power).abs() <= allowed).all(), name
    torch.testing.assert_close(found.lead.double(), p @ b - b[base.targets], rtol=0, atol=2e-6 * float(b.abs().max()))
    for name, value in {"rows": b.T, "low": b.amin(0), "high": b.amax(0)}.items():
        torch.testing.assert_close(getattr(found, name).double(), value, rtol=0, atol=1e-6 * float(b.abs().max()))


# ---- hard cases: peaked predictions, large activations, a neuron that makes up the residual stream


def harden(subject, how):
    if how == "activations x 30":
        for weight in subject.w_in.values():
            weight.mul_(30)
    elif how == "one dominant neuron":
        subject.w_out[:, 5] *= 1e3
    else:
        gain = subject.norm_gain if subject.norm == "rms" else subject.unembedding
        gain.mul_(float(how.split("x ")[1]))
    return subject


def taken(how):
    """Zero takes the dominant neuron away altogether, where its mean would still dominate."""
    return "zero" if "dominant" in how else "mean"


HARD = ["unembedding x 10", "unembedding x 100", "activations x 30", "one dominant neuron"]


def errors_allowed(subject, tokens, how, neurons=range(48)):
    """A function: which errors (n, m) against float64 on the same capture are no larger than is promised."""
    kept, neurons = captured(subject, tokens), torch.tensor(neurons)
    expected, largest = captured_changes(subject, kept, POSITIONS, neurons, taken(how))
    return lambda: ((loss_changes(subject, kept, POSITIONS, ablation=taken(how), neurons=neurons) - expected).abs()
                    <= 1e-5 + 1e-6 * largest)


@pytest.mark.parametrize("how", HARD)
@pytest.mark.parametrize("kind", ["neox-parallel", "llama-tied", "olmo2"])
def test_hard_cases_match_float64_on_the_same_capture_and_there_the_whole_model(tiny, tokens, kind, how):
    assert errors_allowed(harden(tiny(kind), how), tokens, how)().all()
    subject = harden(tiny(kind, torch.float64), how)
    expected, _, _ = hooked_changes(subject, tokens, POSITIONS, taken(how), documents=DOCUMENTS)
    error = (loss_changes(subject, captured(subject, tokens), POSITIONS, ablation=taken(how)) - expected).abs()
    assert (error <= 1e-9 * expected.abs().clamp_min(1)).all()


@pytest.mark.parametrize("how", ["unembedding x 10", "unembedding x 1000", "one dominant neuron"])
@pytest.mark.parametrize("kind", ["llama-tied", "olmo2"])
def test_exact_sums_are_the_same_in_small_spans_and_tiles(tiny, tokens, monkeypatch, kind, how):
    """Spans that do not divide the vocabulary, and tiles smaller than a position has pairs; loss and entropy."""
    subject = harden(tiny(kind, torch.float64), how)
    kept, found = captured(subject, tokens), []
    for span, tile in ((cumulants.SPAN, cumulants.TILE), (7, 7 * 5)):
        monkeypatch.setattr(cumulants, "SPAN", span)
        monkeypatch.setattr(cumulants, "TILE", tile)
        found.append(influence(subject, kept, POSITIONS, ablation=taken(how)))
    assert found[0].fallback > 0.2, "too few pairs need the exact sum"
    for name in ("change_sum", "entropy_sum"):
        torch.testing.assert_close(*(getattr(one, name) for one in found), rtol=1e-9, atol=1e-9)


def test_sums_outside_the_range_of_float32_are_taken_from_their_largest_term(tiny, tokens):
    how = "unembedding x 1000"
    assert errors_allowed(harden(tiny("llama-tied"), how), tokens, how)().all()


@pytest.mark.parametrize("kind, how, neurons, place, name, value", [
    ("neox-parallel", "unembedding x 100", range(48), torch.Tensor, "double", torch.Tensor.float),
    ("neox-parallel", "one dominant neuron", range(48), torch.Tensor, "double", torch.Tensor.float),
    ("llama-tied", "one dominant neuron", [5], cumulants, "STRAIN", torch.inf),
    ("olmo2", "one dominant neuron", [5], cumulants, "STRAIN", torch.inf)])
def test_float64_is_needed_where_the_docstrings_say(tiny, tokens, monkeypatch, kind, how, neurons, place, name, value):
    allowed = errors_allowed(harden(tiny(kind), how), tokens, how, neurons)
    monkeypatch.setattr(place, name, value)
    assert not allowed().all()


# ---- what influence adds up


def test_influence_sums_by_document_and_its_error_is_the_documents(usual):
    subject, kept = usual
    changes = loss_changes(subject, kept, POSITIONS).double()
    of_position = DOCUMENTS[POSITIONS[:, 0]]
    found = influence(subject, kept, POSITIONS, entropy=False)
    assert found.documents.tolist() == [0, 1, 2, 3] and found.n.tolist() == [6, 3, 6, 3]
    for row, document in enumerate(found.documents):
        own = changes[of_position == document]
        torch.testing.assert_close(found.change_sum[row], own.sum(0))
        torch.testing.assert_close(found.abs_sum[row], own.abs().sum(0))
    torch.testing.assert_close(found.mean_abs, changes.abs().mean(0))
    torch.testing.assert_close(found.mean, changes.mean(0))
    by_hand = sum((changes[of_position == k].abs() - found.mean_abs).sum(0) ** 2 for k in range(4)) * 4 / 3
    torch.testing.assert_close(found.sem, by_hand.sqrt() / 18)


def test_influence_of_some_neurons_without_entropy_or_counts(usual):
    subject, kept = usual
    some = influence(subject, kept, POSITIONS, neurons=torch.tensor([40, 2]), entropy=False)
    torch.testing.assert_close(some.mean_abs, influence(subject, kept, POSITIONS).mean_abs[[40, 2]], rtol=1e-4,
                               atol=1e-6)
    assert some.entropy_sum is None and some.unigram_sum is not None
    subject.unigram_counts = None
    assert influence(subject, kept, POSITIONS).unigram_sum is None


# ---- capture and resampling


def test_capture_keeps_scored_positions_and_never_unembeds(tiny, tokens):
    subject = tiny("llama-tied")
    calls = []
    subject.model.get_output_embeddings().register_forward_hook(lambda *arguments: calls.append(1))
    kept = capture(subject, tokens, first=4)
    assert not calls and not subject.mlp_out._forward_pre_hooks and not subject.final_norm._forward_pre_hooks
    assert kept.activations.shape == (6, 11, 48) and kept.residual.shape == (6, 11, 32)
    assert kept.positions[:2].tolist() == [[0, 4], [0, 5]] and kept.positions[-1].tolist() == [5, 14]
    with torch.no_grad():
        logits = subject.model(tokens).logits[:, 4:-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 5:].flatten(), reduction="none")
    torch.testing.assert_close(losses(subject, kept), expected)


def test_resampled_activations_come_from_other_documents_alone(tiny, tokens):
    kept = captured(tiny("neox-parallel"), tokens)
    own = DOCUMENTS[:, None, None].expand_as(kept.activations).float()
    marked = replace(kept, activations=own.contiguous())
    drawn = references(marked, kept.positions, torch.arange(48), "resample", seed=1)
    assert (drawn != DOCUMENTS[kept.positions[:, 0], None]).all()
    of_third = drawn[kept.positions[:, 0] == 2]  # document 1: the others hold 2, 2 and 1 blocks of 5
    assert (of_third == 0).double().mean() == pytest.approx(0.4, abs=0.06)
    assert (of_third == 3).double().mean() == pytest.approx(0.2, abs=0.06)


def test_a_draw_depends_on_seed_position_and_neuron_alone(tiny, tokens):
    kept = captured(tiny("neox-parallel"), tokens)
    every = references(kept, kept.positions, torch.arange(48), "resample", seed=1)
    part = references(kept, kept.positions[[50, 7]], torch.tensor([9, 4]), "resample", seed=1)
    assert torch.equal(part, every[[50, 7]][:, [9, 4]])
    assert (references(kept, kept.positions, torch.arange(48), "resample", seed=2) != every).double().mean() > 0.9


# ---- memory, devices, precision


class Watch(TorchDispatchMode):
    """Notes the devices of all tensors that operations return, and the bytes held at a time, but for those given."""

    def __init__(self, *given):
        super().__init__()
        self.devices, self.peak, self.held = set(), 0, {}
        self.given = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.devices.add(tensor.device.type)
                storage = tensor.untyped_storage()
                if storage._cdata not in self.given:
                    self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: (ref, size) for key, (ref, size) in self.held.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return result


@pytest.mark.parametrize("kind, vocabulary, memory_gb", [
    ("neox-parallel", 3000, 0.004), ("olmo2", 3000, 0.004), ("olmo2", 262_144, 0.05)])
def test_little_memory_gives_the_same_changes_in_small_pieces(tiny, tokens, kind, vocabulary, memory_gb):
    subject = tiny(kind, vocabulary=vocabulary, strength=2.0)
    kept = captured(subject, tokens)
    some = {"positions": kept.positions[::4], "neurons": torch.arange(18)} if vocabulary > 3000 else {}
    with Watch(*subject.model.parameters(), kept.activations, kept.residual, kept.tokens) as watch:
        small = loss_changes(subject, kept, memory_gb=memory_gb, **some)
    assert watch.peak < memory_gb * 1e9, "more memory is held than allowed"
    torch.testing.assert_close(small, loss_changes(subject, kept, **some), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("ablated", ABLATIONS)
@pytest.mark.parametrize("freeze", FREEZES)
def test_every_tensor_lives_on_the_inputs_device(usual, ablated, freeze):
    subject, kept = usual
    torch.set_default_device("meta")  # a tensor made without a device would land there
    try:
        with Watch() as watch:
            influence(subject, kept, POSITIONS, ablation=ablated, freeze=freeze)
            loss_changes(subject, kept, ablation=ablated, freeze=freeze)
            losses(subject, kept)
    finally:
        torch.set_default_device(None)
    assert watch.devices == {"cpu"}


def test_products_never_use_reduced_precision(usual, monkeypatch):
    subject, kept = usual
    seen, original = [], cumulants.moments
    monkeypatch.setattr(kernel, "moments",
                        lambda *arguments: seen.append(torch.get_float32_matmul_precision()) or original(*arguments))
    torch.set_float32_matmul_precision("medium")
    try:
        loss_changes(subject, kept, POSITIONS)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest"]


# ---- bad input, by name


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(positions=torch.tensor([[6, 5]])), "blocks outside 0 to 5"),
    (dict(positions=torch.tensor([[-1, 5]])), "blocks outside"),
    (dict(positions=torch.tensor([[0, 2]])), "between 3 and 14"),
    (dict(positions=torch.tensor([[0, 15]])), "between 3 and 14"),
    (dict(positions=torch.tensor([0, 5])), "shape"),
    (dict(positions=torch.tensor([[0.0, 5.0]])), "whole numbers"),
    (dict(ablation="median"), "median.*mean, zero, resample"),
    (dict(freeze="norm"), "norm.*unigram, scale"),
    (dict(neurons=torch.tensor([48])), "between 0 and 47"),
    (dict(memory_gb=0), "memory_gb"),
])
def test_bad_arguments_are_named(usual, arguments, message):
    subject, kept = usual
    for function in (loss_changes, influence):
        with pytest.raises(ValueError, match=message):
            function(subject, kept, **arguments)


@pytest.mark.parametrize("change, options, message", [
    (lambda kept: {"activations": kept.activations.index_put([torch.tensor(0)] * 3, torch.tensor(torch.nan))}, {},
     "not finite"),
    (lambda kept: {"activations": kept.activations[..., :10]}, {}, "another model"),
    (lambda kept: {"documents": torch.zeros(6)}, {"ablation": "resample"}, "two documents"),
    (lambda kept: {}, {"freeze": "unigram"}, "unigram counts")])
def test_bad_captures_are_named(usual, change, options, message):
    subject, kept = usual
    subject.unigram_counts = None
    with pytest.raises(ValueError, match=message):
        loss_changes(subject, replace(kept, **change(kept)), **options)


@pytest.mark.parametrize(("change", "message"), [
    (dict(tokens=torch.zeros(16, dtype=torch.int64)), "shape"),
    (dict(tokens=torch.zeros(2, 16)), "int64"),
    (dict(tokens=torch.full((2, 16), VOCABULARY)), f"between 0 and {VOCABULARY - 1}"),
    (dict(first=15), "no scored position"),
    (dict(documents=torch.arange(5)), "one document a block"),
])
def test_bad_captures_are_refused(tiny, tokens, change, message):
    arguments = {"tokens": tokens, **change}
    with pytest.raises(ValueError, match=message):
        capture(tiny("neox-parallel"), arguments.pop("tokens"), **arguments)


def test_influence_needs_positions_and_their_documents(usual):
    subject, kept = usual
    with pytest.raises(ValueError, match="no positions"):
        influence(subject, kept, POSITIONS[:0])
    with pytest.raises(ValueError, match="one document a position"):
        influence(subject, kept, POSITIONS, torch.arange(3))


# ---- distance from the unigram distribution: softmax of whole logits


def brute(subject, kept, positions, neuron):
    """Mean change of KL(model || unigram) with one neuron at its mean, by the model's own norm and unembedding."""
    block, t = positions.unbind(1)
    residual = kept.residual[block, t - kept.first]
    delta = kept.means[neuron] - kept.activations[block, t - kept.first, neuron]
    unigram = ((subject.unigram_counts + 1) / (subject.unigram_counts + 1).sum()).log()
    values = []
    for stream in (residual, moved(subject, kept, positions, neuron, delta)):
        logits = torch.nn.functional.linear(subject.final_norm(stream), subject.unembedding, subject.unembedding_bias)
        logs = logits.log_softmax(-1)
        values.append((logs.exp() * (logs - unigram)).sum(-1).mean())
    return float(values[1] - values[0])


@pytest.mark.parametrize("kind", ("neox-parallel", "llama-tied", "olmo2"))
def test_kl_is_that_of_whole_logits_and_its_expansion_is_near(tiny, tokens, kind):
    subject = tiny(kind, torch.float64, strength=4.0)
    kept = capture(subject, tokens)
    positions = kept.positions[::5]
    entropy = influence(subject, kept, positions).entropy_sum.sum(0) / len(positions)
    exact = divergences(subject, kept, positions, entropy, range(subject.n_neurons))
    expanded = divergences(subject, kept, positions, entropy, [])
    for neuron in (0, 7, 31):
        assert float(exact[neuron]) == pytest.approx(brute(subject, kept, positions, neuron), abs=1e-6)
    assert exact.abs().max() > 1e-4
    assert float((expanded - exact).abs().max()) < 0.05 * float(exact.abs().max())
    assert float((expanded - exact).abs().max()) > 0  # it is an expansion
