"""llama.cpp (through llama-cpp-python's bindings) as the outside reference: one model, one context.

Shared by scripts/make-references and bench/llama_decode.py. Thin on purpose: every call is one or
two calls of llama.h, so that what is compared is llama.cpp and not Python around it.
"""
import ctypes

import llama_cpp
import numpy as np

FILE_TYPES = {"F32": llama_cpp.LLAMA_FTYPE_ALL_F32,
              "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
              "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
              "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def _quiet(_level, _text, _data):
    pass


_quiet_callback = llama_cpp.llama_log_callback(_quiet)
llama_cpp.llama_log_set(_quiet_callback, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


def requantize(source, target, file_type, threads):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.allow_requantize = True
    params.nthread = threads
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status != 0:
        raise RuntimeError(f"llama_model_quantize: status {status} for {source}")


class LlamaSession:
    """Greedy use of one sequence. K and V are f16 (llama.cpp's default) unless kv_f32.

    flash_attention: "off" for references (its CPU code sums V in f16), "auto" is the default of
    llama.cpp itself."""

    BATCH = 512
    FLASH = {"auto": -1, "off": 0, "on": 1}

    def __init__(self, path, context_tokens, threads, flash_attention="off", kv_f32=False):
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_tokens = llama_cpp.llama_vocab_n_tokens(self.vocab)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = self.BATCH
        params.n_ubatch = self.BATCH
        params.n_threads = threads
        params.n_threads_batch = threads
        kv_type = llama_cpp.GGML_TYPE_F32 if kv_f32 else llama_cpp.GGML_TYPE_F16
        params.type_k = kv_type
        params.type_v = kv_type
        params.flash_attn_type = self.FLASH[flash_attention]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.batch = llama_cpp.llama_batch_init(self.BATCH, 0, 1)
        self.position = 0

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokenize(self, text, special=False):
        capacity = len(text) + 16
        ids = (llama_cpp.llama_token * capacity)()
        count = llama_cpp.llama_tokenize(self.vocab, text, len(text), ids, capacity, True, special)
        if count < 0:
            raise RuntimeError("llama_tokenize failed")
        return list(ids[:count])

    def piece(self, token):
        buffer = ctypes.create_string_buffer(256)
        count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, 256, 0, True)
        return buffer.raw[:max(count, 0)]

    def is_end(self, token):
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0

    def truncate(self, tokens):
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), 0, tokens, -1)
        self.position = tokens

    def feed(self, tokens, all_logits=False):
        """Yields, per batch, the logits [rows][vocab] that it asked for (a copy)."""
        for start in range(0, len(tokens), self.BATCH):
            part = tokens[start:start + self.BATCH]
            self.batch.n_tokens = len(part)
            rows = 0
            for i, token in enumerate(part):
                wanted = all_logits or start + i == len(tokens) - 1
                self.batch.token[i] = token
                self.batch.pos[i] = self.position + i
                self.batch.n_seq_id[i] = 1
                self.batch.seq_id[i][0] = 0
                self.batch.logits[i] = wanted
                rows += wanted
            status = llama_cpp.llama_decode(self.context, self.batch)
            if status != 0:
                raise RuntimeError(f"llama_decode: status {status}")
            self.position += len(part)
            if rows:
                pointer = llama_cpp.llama_get_logits(self.context)
                yield np.ctypeslib.as_array(pointer, (rows * self.vocab_tokens,)).reshape(
                    rows, self.vocab_tokens).copy()

    def last_logits(self, tokens):
        last = None
        for rows in self.feed(tokens):
            last = rows
        return last[-1]

    def save_state(self, path, tokens):
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        size = llama_cpp.llama_state_seq_save_file(self.context, path.encode(), 0, ids, len(tokens))
        if size == 0:
            raise RuntimeError(f"llama_state_seq_save_file: {path}")
        return size

    def load_state(self, path, capacity):
        ids = (llama_cpp.llama_token * capacity)()
        count = ctypes.c_size_t(0)
        size = llama_cpp.llama_state_seq_load_file(
            self.context, path.encode(), 0, ids, capacity, ctypes.byref(count))
        if size == 0:
            raise RuntimeError(f"llama_state_seq_load_file: {path}")
        self.position = count.value
        return count.value


def version():
    """What to write beside a figure: the bindings' version and how the library was built."""
    return {"llama_cpp_python": llama_cpp.__version__,
            "system_info": llama_cpp.llama_print_system_info().decode().strip()}
