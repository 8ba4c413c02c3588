#!/usr/bin/env python3
"""PyTorch and transformers in f32 over the same GGUF file, for bench/engine_vs_llamacpp --torch, in the
virtual environment that it sets up for them.

    torch_prefill.py --model FILE --ids FILE --sizes N,... --threads N

Prints {"version": ..., "prefill_ms": {"sdpa": {N: ...}, "eager": {N: ...}}}: how long the forward
pass over the first N ids takes that leaves a KV cache and the last token's logits. transformers turns
the weights into f32 while it loads; nothing is fetched."""
import argparse
import json
import os
import time

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
import torch  # noqa: E402 (transformers reads the variables when it is imported)
import transformers  # noqa: E402

MODES = ("sdpa", "eager")


def load(path, mode):
    folder, name = os.path.split(os.path.abspath(path))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation=mode)
    return model.eval()


def prefill_ms(model, ids):
    start = time.perf_counter()
    output = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    output.logits[0, -1].argmax().item()
    return 1000 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--ids", required=True, help="a JSON list of token ids")
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with open(args.ids) as file:
        ids = json.load(file)
    times = {}
    with torch.inference_mode():
        for mode in MODES:
            model = load(args.model, mode)
            prefill_ms(model, ids[:16])
            times[mode] = {size: prefill_ms(model, ids[:size])
                           for size in map(int, args.sizes.split(","))}
    print(json.dumps({"version": f"torch {torch.__version__}, transformers"
                      f" {transformers.__version__}", "prefill_ms": times}))


main()
