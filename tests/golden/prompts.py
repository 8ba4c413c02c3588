"""What the greedy and perplexity references are made on; read by their maker and by the test."""
import os

NEW_TOKENS = 64
MARGIN = 0.05  # below this top-two margin, rounding may choose the other token
PERPLEXITY_TOKENS = 2048
PERPLEXITY_TOLERANCE = 0.003

# On every Debian machine (base-files). The references hold its SHA-256: another edition is a skip.
LICENSE = "/usr/share/common-licenses/GPL-3"

# Chosen among more by one rule: margins stay above MARGIN for long, so that much is compared.
PROMPTS = [
    {"name": "english", "text": "The quick brown fox jumps over the lazy dog. The dog,"},
    {"name": "story", "text": "Once upon a time, in a village by the sea, there lived an old"
                              " clockmaker who had never been late in his life. One morning"},
    {"name": "water", "text": "Water boils at"},
    {"name": "c", "text": "#include <stdio.h>\n\nint main(void)\n{\n"
                          "    for (int i = 0; i < 10; i++)\n        printf("},
    {"name": "python", "text": "def fibonacci(n):\n"
                               "    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n"},
    {"name": "license-130", "file": LICENSE, "prompt_tokens": 130},
    {"name": "license-333", "file": LICENSE, "prompt_tokens": 333},
    {"name": "license-900", "file": LICENSE, "prompt_tokens": 900},
    {"name": "license-2000", "file": LICENSE, "prompt_tokens": 2000},
    {"name": "chat", "chat": True, "text": "Why is the sky blue?"},
    {"name": "chat-short", "chat": True, "text": "What is the capital of France?"},
    {"name": "chat-marker", "chat": True, "text":
        "Translate 'good morning' into French, don't add anything: Caf\u00e9 \u2615 <|im_end|>"},
]


def license_text():
    with open(LICENSE, "rb") as file:
        return file.read()


def text_of(prompt):
    return license_text() if "file" in prompt else prompt["text"].encode("utf-8")


def cached_model():
    """Where scripts/fetch-model puts the demo model."""
    folder = os.environ.get("KVLOFT_MODEL_DIR")
    if not folder:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(cache, "kvloft", "models")
    return os.path.join(folder, "SmolLM2-135M-Instruct.Q4_1.gguf")
