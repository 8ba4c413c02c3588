#!/usr/bin/env python3
"""Writes data/chat_templates.json: chat templates of real models, and what Jinja makes of them.

Run by scripts/make-references inside its virtual environment. The templates are those that
llama.cpp's source has (models/templates, tests/test-chat-template.cpp; each entry names its model),
rendered as transformers and llama.cpp set Jinja up. --all takes every template there, for
chat_test --list.
"""
import argparse
import glob
import json
import os
import re

import jinja2

# Model (file in models/templates, or name in test-chat-template.cpp): the format it has to be
# recognised as; None has to be refused.
CHOSEN = {
    "teknium/OpenHermes-2.5-Mistral-7B": "chatml",
    "Qwen-Qwen2.5-7B-Instruct.jinja": "chatml",
    "Qwen-Qwen3-0.6B.jinja": "chatml",
    "Qwen-QwQ-32B.jinja": None,
    "meta-llama/Llama-2-7b-chat-hf": "llama-2",
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
    "google/gemma-3-1b-it": "gemma-3",
    "HuggingFaceH4/zephyr-7b-beta": "zephyr",
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

# Three that llama.cpp's source lacks, as their tokenizer_config.json have them.
OTHERS = {
    "meta-llama/Llama-2-7b-chat-hf":
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}"
        "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') "
        "}}{% endif %}{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] "
        "%}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' "
        "}}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
        "{% endif %}{% endfor %}",
    "HuggingFaceH4/zephyr-7b-beta":
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}",
    "google/gemma-3-1b-it":
        "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n"
        "    {%- if messages[0]['content'] is string -%}\n"
        "        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}\n"
        "    {%- else -%}\n"
        "        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}\n"
        "    {%- endif -%}\n    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n"
        "    {%- set first_user_prefix = \"\" -%}\n    {%- set loop_messages = messages -%}\n"
        "{%- endif -%}\n{%- for message in loop_messages -%}\n"
        "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n"
        "        {{ raise_exception(\"Conversation roles must alternate "
        "user/assistant/user/assistant/...\") }}\n    {%- endif -%}\n"
        "    {%- if (message['role'] == 'assistant') -%}\n        {%- set role = \"model\" -%}\n"
        "    {%- else -%}\n        {%- set role = message['role'] -%}\n    {%- endif -%}\n"
        "    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else \"\") }}\n"
        "    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}\n"
        "    {%- elif message['content'] is iterable -%}\n"
        "        {%- for item in message['content'] -%}\n"
        "            {%- if item['type'] == 'image' -%}\n"
        "                {{ '<start_of_image>' }}\n"
        "            {%- elif item['type'] == 'text' -%}\n"
        "                {{ item['text'] | trim }}\n            {%- endif -%}\n"
        "        {%- endfor -%}\n    {%- else -%}\n"
        "        {{ raise_exception(\"Invalid content type\") }}\n    {%- endif -%}\n"
        "    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n"
        "    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n",
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


def templates_of(source):
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
    return {**found, **OTHERS}


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


def entry_of(name, template, chosen):
    cases = []
    for system, messages in CASES:
        try:
            cases.append(case_of(template, system, messages))
        except (ValueError, TypeError, AttributeError, jinja2.TemplateError) as error:
            print(f"{name}: {error!r}")
    return {"name": name, "format": chosen, "template": template, "cases": cases}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True, help="llama.cpp's source")
    parser.add_argument("--out", required=True)
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    found = templates_of(args.source)
    names = found if args.all else CHOSEN
    entries = [entry_of(name, found[name], CHOSEN.get(name)) for name in names]
    for entry in entries:
        if not args.all and entry["format"] is None:
            entry["cases"] = []
    path = os.path.join(args.out, "chat_templates.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"made_by": {"jinja2": jinja2.__version__}, "templates": entries}, file, indent=1)
        file.write("\n")
    print(f"{path}: {len(entries)} templates")


if __name__ == "__main__":
    main()
