#!/usr/bin/env python3
"""Writes data/vocab_*.gguf and data/tokenizers.json: small vocabularies, and what llama.cpp makes of
the corpus with each of them and each pre-tokenizer.

Run by scripts/make-references inside its virtual environment. The vocabularies are trained on text
of corpus.py (another seed than the test's) by PyPI's tokenizers and sentencepiece, written by PyPI's
gguf. Merges are learned without regard to words, so that nearly every wrong cut changes ids.
--real FOLDER adds references for the vocabularies of real models there (ggml-vocab-NAME.gguf).
"""
import argparse
import hashlib
import io
import json
import os
import sys

import gguf
import llama_cpp
import sentencepiece
import tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "scripts"))
import corpus  # noqa: E402
import llama_session  # noqa: E402  (quiets llama.cpp)
import tokenizer_texts  # noqa: E402

TRAINING_SEED = 5
TRAINING_BYTES = 400000
BPE_TOKENS = 1400
SPM_TOKENS = 1200
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
USER_DEFINED = ["<repo_name>", "    ", "  ", "<|im_", "\u4e2d"]
# Tokens that no merge leads to; some pre-tokenizers take whole words without merging.
UNMERGED = [" antidisestablishmentarianism", " daemon", "tokenization", "007", "\n\n\n", " \u4e2d"]
REAL = ["deepseek-llm", "gpt-2", "gpt-neox", "llama-bpe", "llama-spm", "phi-3", "qwen2"]
NAMES = ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "deepseek-llm", "default"]


def training_text():
    return corpus.corpus(TRAINING_SEED, TRAINING_BYTES).decode("utf-8")


def train_bpe():
    """Tokens in GPT-2's writing, and merges as "left right"."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=BPE_TOKENS, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    text = training_text()
    model.train_from_iterator((text[i:i + 24] for i in range(0, len(text), 24)), trainer)
    trained = json.loads(model.to_str())["model"]
    tokens = sorted(trained["vocab"], key=trained["vocab"].get)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in trained["merges"]]
    return tokens, merges


def written(text):
    """In GPT-2's writing of bytes."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(part for part, _ in byte_level.pre_tokenize_str(text))


def writer_of(path, model):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(os.path.basename(path)[:-len(".gguf")])
    writer.add_tokenizer_model(model)
    return writer


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write_bpe(path, pre, trained):
    tokens, merges = trained
    unmerged = [t for t in map(written, UNMERGED) if t not in tokens]
    everything = CONTROL + USER_DEFINED + tokens + unmerged
    kinds = [3] * len(CONTROL) + [4] * len(USER_DEFINED) + [1] * (len(tokens) + len(unmerged))
    writer = writer_of(path, "gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(everything)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(CONTROL.index("<s>"))
    writer.add_eos_token_id(CONTROL.index("</s>"))
    finish(writer)


def train_spm(by_words):
    model = io.BytesIO()
    # of few scripts: the characters of all would not leave room for words
    lines = [line for line in training_text().split("\n") if line and max(line) < "\u0500"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe",
        vocab_size=SPM_TOKENS, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_by_whitespace=by_words, split_by_unicode_script=False, split_by_number=False,
        max_sentence_length=100000, user_defined_symbols=["<repo_name>"], minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def spm_kind(processor, index):
    if processor.IsUnknown(index):
        return 2
    if processor.IsControl(index):
        return 3
    if processor.IsByte(index):
        return 6
    return 4 if processor.IdToPiece(index) == "<repo_name>" else 1


def write_spm(path, by_words):
    processor = train_spm(by_words)
    count = processor.GetPieceSize()
    writer = writer_of(path, "llama")
    writer.add_token_list([processor.IdToPiece(i) for i in range(count)])
    writer.add_token_scores([processor.GetScore(i) for i in range(count)])
    writer.add_token_types([spm_kind(processor, i) for i in range(count)])
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    finish(writer)


class Vocabulary:
    def __init__(self, path):
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def tokenize(self, text, special):
        ids = (llama_cpp.llama_token * (len(text) + 16))()
        count = llama_cpp.llama_tokenize(
            self.vocab, text, len(text), ids, len(ids), True, special)
        if count < 0:
            raise RuntimeError("llama_tokenize failed")
        return list(ids[:count])


def references_of(vocab_path, fields):
    vocabulary = Vocabulary(vocab_path)
    entries = []
    for name, special in tokenizer_texts.RUNS:
        ids = vocabulary.tokenize(tokenizer_texts.text_of(name), special)
        entries.append({**fields, "text": name, "special": special, "tokens": len(ids),
                        "ids_sha256": tokenizer_texts.digest(ids),
                        "blocks": "".join(tokenizer_texts.block_digests(ids))})
    print(fields, [entry["tokens"] for entry in entries])
    return entries


def real_references(folder):
    entries = []
    for vocabulary in REAL:
        name = f"ggml-vocab-{vocabulary}.gguf"
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        entries += references_of(path, {"real": name, "file_sha256": digest})
    return entries


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--real", help="folder with vocabularies of real models")
    args = parser.parse_args()
    entries = []
    bpe = os.path.join(args.out, "vocab_bpe.gguf")
    trained = train_bpe()
    for pre in NAMES:
        write_bpe(bpe, pre, trained)
        entries += references_of(bpe, {"vocab": "vocab_bpe.gguf", "pre": pre})
    for name, by_words in (("vocab_spm.gguf", True), ("vocab_spm_phrases.gguf", False)):
        write_spm(os.path.join(args.out, name), by_words)
        entries += references_of(os.path.join(args.out, name), {"vocab": name})
    if args.real:
        entries += real_references(args.real)
    texts = {name: hashlib.sha256(tokenizer_texts.text_of(name)).hexdigest()
             for name in sorted({run[0] for run in tokenizer_texts.RUNS})}
    with open(os.path.join(args.out, "tokenizers.json"), "w", encoding="utf-8") as file:
        json.dump({"made_by": llama_session.version(), "texts_sha256": texts, "entries": entries},
                  file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
