"""SentencePiece models (`tokenizer.model`) without a tokenizer.json, as tokenizers that cut a text as SentencePiece does.

transformers reads such a file by the class of the model's family, and cuts otherwise where that is not the file's own kind
(no space before the first word, a byte-level cut of a GPT-NeoX's pieces). Here the file's own settings decide.
"""

from tokenizers import AddedToken, Regex, decoders, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor, SpmConverter, import_protobuf

SPACE = "\u2581"  # how SentencePiece writes a space
PROBE = " A whale\u2019s tale:\n  42 caf\u00e9s \u2014 \u201cthe sea\u201d "


def of_file(path):
    """The tokenizer of a SentencePiece model.

    Raises
    ------
    ValueError
        The packages sentencepiece and protobuf are not installed; the file cuts texts in a way that is not known here.
    RuntimeError, google.protobuf.message.DecodeError
        It is no SentencePiece model.
    """
    try:
        import google.protobuf  # noqa: F401
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ValueError("a SentencePiece model needs the packages sentencepiece and protobuf "
                         "(pip install -e '.[sentencepiece]')") from None
    processor = SentencePieceProcessor(model_file=str(path))
    proto = import_protobuf().ModelProto.FromString(path.read_bytes())
    backend = _backend(path, proto)
    if backend.encode(PROBE, add_special_tokens=False).ids != processor.encode(PROBE):
        raise ValueError(f"{path.name} cuts texts in a way that is not known here; save a tokenizer.json beside it")
    ids = {"unk_token": processor.unk_id(), "bos_token": processor.bos_id(), "eos_token": processor.eos_id(),
           "pad_token": processor.pad_id()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False,
                                   **{name: processor.id_to_piece(row) for name, row in ids.items() if row >= 0})


def _backend(path, proto):
    """Pieces, and merges of a BPE model, by transformers; spaces as the file's normaliser has them."""
    found, spec = SentencePieceExtractor(str(path)).extract(None), proto.normalizer_spec
    backend = SpmConverter.build_tokenizer_from_spm_proto(proto, found["vocab"], found.get("merges"))
    steps = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                         *([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else [])])
    backend.add_tokens([AddedToken(piece.piece, normalized=False) for piece in proto.pieces if piece.type == piece.USER_DEFINED])
    return backend
