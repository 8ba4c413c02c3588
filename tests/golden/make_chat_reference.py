#!/usr/bin/env python3
"""Writes what Jinja makes of chat templates, for chat_test.

    make_chat_reference.py --own     data/chat_templates.json: those of data/chat, written for this
                                     test; and tests/fuzz/corpus/chat from some of them
    make_chat_reference.py --real SOURCE --out FOLDER [--all]
                                     FOLDER/chat_templates.json: those of real models, out of
                                     llama.cpp's source (models/templates,
                                     tests/test-chat-template.cpp); not for the tree

Run by scripts/make-references inside its virtual environment; --own needs nothing but jinja2.
Jinja is set up as transformers and llama.cpp set it up. --all takes every template of the source,
for golden_chat_test --list.
"""
import argparse
import glob
import json
import os
import re

import jinja2

HERE = os.path.dirname(os.path.abspath(__file__))
OWN = os.path.join(HERE, "data", "chat")
FUZZ = os.path.join(HERE, "..", "fuzz", "corpus", "chat")

# Template in data/chat: the format it has to be recognised as; refused-*: none.
OWN_FORMATS = {
    "chatml": "chatml",
    "chatml-default-by-variable": "chatml",
    "chatml-thinks": "chatml",
    "gemma": "gemma",
    "gemma-3": "gemma-3",
    "llama-2": "llama-2",
    "llama-3": "llama-3",
    "llama-3.1": "llama-3.1",
    "mistral": "mistral",
    "mistral-large": "mistral-large",
    "mistral-nemo": "mistral-nemo",
    "mistral-v0": "mistral-v0",
    "mistral-v1": "mistral-v1",
    "phi-3": "phi-3",
    "phi-3-always-prompts": "phi-3",
    "zephyr": "zephyr",
}
FUZZED = ["chatml-thinks", "gemma-3", "llama-2", "llama-3.1", "mistral", "phi-3", "zephyr"]
FUZZED_TEXT = " a <|im_end|><|eot_id|></s>[/INST]<end_of_turn>"

# Model (file in models/templates, or name in test-chat-template.cpp): the same for real ones; None
# has to be refused.
CHOSEN = {
    "teknium/OpenHermes-2.5-Mistral-7B": "chatml",
    "Qwen-Qwen2.5-7B-Instruct.jinja": "chatml",
    "Qwen-Qwen3-0.6B.jinja": "chatml",
    "Qwen-QwQ-32B.jinja": None,
    "Llama-3": "llama-3",
    "meta-llama-Llama-3.1-8B-Instruct.jinja": "llama-3.1",
    "meta-llama-Llama-3.2-3B-Instruct.jinja": "llama-3.1",
    "meta-llama-Llama-3.3-70B-Instruct.jinja": "llama-3.1",
    "mistralai/Mistral-7B-Instruct-v0.2 (NOTE: Old pre-v1 without a system prompt)": "mistral-v0",
    "mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1' template with a system prompt)":
        "mistral-v1",
    "Mistral-Large-Instruct-2407 (mistralai 'v3' template; modified to have system prompt at start)":
        "mistral",
    "mistralai-Mistral-Nemo-Instruct-2407.jinja": "mistral-nemo",
    "mistralai/Mistral-Large-Instruct-2411 (mistralai 'v7' template)": "mistral-large",
    "google/gemma-7b-it": "gemma",
    "google-gemma-2-2b-it.jinja": "gemma",
    "Phi-3-mini": "phi-3",
    "Phi-3-medium": "phi-3",
    "Phi-3-vision": "phi-3",
    "microsoft-Phi-3.5-mini-instruct.jinja": "phi-3",
    "phi-4": None,
    "CohereForAI/c4ai-command-r-plus": None,
    "bofenghuang/vigogne-2-70b-chat": None,
    "ibm-granite-granite-3.3-2B-Instruct.jinja": None,
    "HuggingFaceTB-SmolLM3-3B.jinja": None,
    "Qwen3.5-4B.jinja": None,
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja": None,
}

SYSTEM = "You answer in verse."
CASES = [
    (None, ["Hello"]),
    (SYSTEM, ["Hello"]),
    ("  " + SYSTEM + "\n", ["\n\n  Why?\u00a0 \n"]),
    (SYSTEM, [" \n"]),
    (None, ["it's 12 \u4e2d\u6587\n\ncode:\n\tx"]),
    (None, ["Hello", "Fine.", "And now?"]),
    (None, ["a", "b", " c", "d", "e\n"]),
]


def literal(text):
    """A C++ string literal's value; what it has is also JSON's."""
    return json.loads('"' + text.replace("\\'", "'") + '"')


def real_templates(source):
    found = {}
    for path in sorted(glob.glob(os.path.join(source, "models/templates/*.jinja"))):
        with open(path, encoding="utf-8") as file:
            found[os.path.basename(path)] = file.read()
    with open(os.path.join(source, "tests/test-chat-template.cpp"), encoding="utf-8") as file:
        text = file.read()
    one = r'"(?:[^"\\]|\\.)*"'
    pattern = (r"/\* \.name= \*/ (" + one + r"),\s*(?://[^\n]*\n\s*)?"
               r"/\* \.template_str= \*/ (?:U8C\()?((?:" + one + r"\s*)+)")
    for match in re.finditer(pattern, text):
        parts = re.findall(r'"((?:[^"\\]|\\.)*)"', match.group(2))
        found[literal(match.group(1)[1:-1])] = literal("".join(parts))
    return found


def fail(message):
    raise jinja2.TemplateError(message)


def render(template, system, messages):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = fail
    turns = [{"role": "system", "content": system}] if system is not None else []
    turns += [{"role": ("user", "assistant")[i % 2], "content": text}
              for i, text in enumerate(messages)]
    return environment.from_string(template).render(
        messages=turns, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")


def case_of(template, system, messages):
    try:
        rendered = render(template, system, messages)
        ignored = system is not None and system.strip() not in rendered
        first = render(template, system, messages[:1])
    except jinja2.TemplateError:
        return {"system": system, "messages": messages}
    if ignored:  # dropped in silence; that is refused here
        return {"system": system, "messages": messages}
    case = {"system": system, "messages": messages, "rendered": rendered}
    if len(messages) > 1:
        # what the template writes before an answer beyond the prompt, the model has to begin with
        at = min(len(first), rendered.index(messages[1], len(os.path.commonprefix((first, rendered)))
                                            - len(messages[1])))
        case["answer_begin"] = rendered[at:rendered.index(messages[1], at)]
    return case


def entry_of(name, template, chosen, conversations):
    cases = []
    for system, messages in conversations:
        try:
            cases.append(case_of(template, system, messages))
        except (ValueError, TypeError, AttributeError, jinja2.TemplateError) as error:
            print(f"{name}: {error!r}")
    return {"name": name, "format": chosen, "template": template, "cases": cases}


def write(path, entries):
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"made_by": {"jinja2": jinja2.__version__}, "templates": entries}, file, indent=1)
        file.write("\n")
    print(f"{path}: {len(entries)} templates")


def own_template(name):
    with open(os.path.join(OWN, name), encoding="utf-8") as file:
        return file.read()


def write_own():
    """Each template stays in its file; the entries have its name."""
    entries = []
    for name in sorted(os.listdir(OWN)):
        stem = name[:-len(".jinja")]
        chosen = None if stem.startswith("refused-") else OWN_FORMATS[stem]
        cases = CASES if chosen else []
        entry = entry_of(name, own_template(name), chosen, cases)
        if len(entry["cases"]) != len(cases):
            raise RuntimeError(f"{name}: a case is missing")
        del entry["template"]
        entries.append(entry)
    write(os.path.join(HERE, "data", "chat_templates.json"), entries)
    for stem in FUZZED:
        with open(os.path.join(FUZZ, stem + ".bin"), "wb") as file:
            file.write((own_template(stem + ".jinja") + "\0" + FUZZED_TEXT).encode("utf-8"))


def write_real(source, out, everything):
    found = real_templates(source)
    names = found if everything else CHOSEN
    entries = [entry_of(name, found[name], CHOSEN.get(name),
                        CASES if everything or CHOSEN[name] else [])
               for name in names]
    write(os.path.join(out, "chat_templates.json"), entries)


def main():
    parser = argparse.ArgumentParser()
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--own", action="store_true")
    which.add_argument("--real", metavar="SOURCE", help="llama.cpp's source")
    parser.add_argument("--out", metavar="FOLDER", help="with --real: not in the tree")
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    if args.own:
        write_own()
    elif args.out:
        write_real(args.real, args.out, args.all)
    else:
        parser.error("--real needs --out")


if __name__ == "__main__":
    main()
