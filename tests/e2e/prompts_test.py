#!/usr/bin/env python3
"""Many prompts at once, through kvloft-decode --prompts: each answered as it is alone."""
import json
import os
import signal
import subprocess
import unittest

import harness
from harness import BIN, SANITIZED, TINY, Case, decode, restored, run, smollm2

FIELDS = ("text", "output_tokens", "logits_sha256", "stop_reason", "prompt_tokens")


def options_of(line):
    """The same as options of kvloft-decode, for one prompt."""
    words = []
    for name, value in line.items():
        if name == "logit_bias":
            for token, bias in value.items():
                words += ["--logit-bias", f"{token}={bias}"]
        elif name == "stop":
            for text in value if isinstance(value, list) else [value]:
                words += ["--stop", text]
        elif name != "id":
            words += ["--" + name.replace("_", "-"), str(value)]
    return words


class Prompts(Case):
    def write(self, lines, name="prompts.jsonl"):
        """Lines that are texts or bytes are written as they are."""
        file = self.folder / name
        with file.open("wb") as out:
            for line in lines:
                if not isinstance(line, (str, bytes)):
                    line = json.dumps(line)
                out.write((line.encode() if isinstance(line, str) else line) + b"\n")
        return file

    def command(self, file, *words, model=TINY):
        return [str(word) for word in (BIN / "kvloft-decode", "--model", model, "--prompts", file,
                                       "--json", "--hash-logits", *words)]

    def answers(self, lines, *words, status=0, **options):
        """-> results by line number, the summary."""
        file = lines if isinstance(lines, os.PathLike) else self.write(lines)
        done = run(*self.command(file, *words, **options), check=False)
        self.assertEqual(done.returncode, status, done.stderr)
        return self.sorted_out(done.stdout)

    def sorted_out(self, out):
        results = [json.loads(line) for line in out.splitlines()]
        summary = results.pop()["summary"]
        by_line = {result["line"]: result for result in results}
        self.assertEqual(len(by_line), len(results))
        return by_line, summary

    def lines(self, count):
        """Most of them with one long prefix, each otherwise asked."""
        prefix = self.prompt(150).read_text()
        found = []
        for i in range(count):
            line = {"id": f"line {i}", "prompt": f"{prefix} number {i}" if i % 4 else f"of {i}",
                    "max_tokens": 6 + 5 * i}
            if i % 3 == 1:
                line |= {"temperature": 1.25, "seed": 7 + i, "top_k": 50, "top_p": 0.9}
            if i % 3 == 2:
                line |= {"repeat_penalty": 1.5, "presence_penalty": 0.5, "repeat_last_n": 20,
                         "logit_bias": {"30": "-inf", "31": 2.5}}
            found.append(line)
        return found

    def assert_as_alone(self, lines, results):
        for number, line in enumerate(lines, 1):
            alone = decode("--no-offload", "--hash-logits", *options_of(line))
            for field in FIELDS:
                self.assertEqual(results[number][field], alone[field], (number, field))
            self.assertEqual(results[number]["id"], line["id"])


class Right(Prompts):
    def test_each_is_answered_as_alone(self):
        lines = self.lines(10)
        stop = decode("--no-offload", *options_of(lines[0] | {"max_tokens": 30}))["text"][8:11]
        lines[0] |= {"max_tokens": 30, "stop": [stop, "no such text"]}
        expected = None
        for words in (("--parallel", "4"), ("--parallel", "1", "--threads", "1"),
                      ("--no-offload",), ("--embedded", self.disk, "--parallel", "3"),
                      ("--device-bytes", "96K", "--parallel", "10")):
            results, summary = self.answers(lines, *words)
            if expected is None:
                self.assert_as_alone(lines, results)
                expected = results
            for number in results:
                for field in FIELDS:
                    self.assertEqual(results[number][field], expected[number][field], words)
            self.assertEqual((summary["done"], summary["failed"]), (10, 0))
        self.assertEqual(expected[1]["stop_reason"], "stop")

    def test_with_a_daemon_the_prefix_is_computed_once_in_all_runs(self):
        lines = self.lines(8)
        self.start_daemon()
        first, summary = self.answers(lines, "--connect", self.address)
        self.assertEqual(summary["store"], "daemon")
        whole = (first[2]["prompt_tokens"] - 1) // 64 * 64
        self.assertGreater(whole, 256)
        for number in (3, 4, 6, 7, 8):
            self.assertGreaterEqual(restored(first[number]), whole - 64)
            self.assertEqual(first[number]["computed_tokens"] + restored(first[number]),
                             first[number]["prompt_tokens"])
        self.assertEqual(restored(first[2]), 0)
        again, summary = self.answers(lines, "--connect", self.address)
        self.assertGreaterEqual(restored(again[2]), whole)
        self.assertEqual(sum(summary["restored_tokens"].values()),
                         sum(restored(result) for result in again.values()))
        for number in first:
            self.assertEqual(first[number]["logits_sha256"], again[number]["logits_sha256"])
        self.wait_for_leases()

    def test_a_daemon_killed_in_the_middle_changes_nothing(self):
        lines = [line | {"max_tokens": 400} for line in self.lines(9)]
        expected, _ = self.answers(lines, "--no-offload")
        daemon = self.start_daemon()
        process = subprocess.Popen(self.command(self.write(lines), "--connect", self.address,
                                                "--parallel", "3"), stdout=subprocess.PIPE)
        self.processes.append(process)
        first = process.stdout.readline()
        daemon.kill()
        results, summary = self.sorted_out(first + process.stdout.read())
        self.assertEqual(process.wait(timeout=300), 0)
        self.assertTrue(summary["daemon_lost"])
        for number in expected:
            for field in FIELDS:
                self.assertEqual(results[number][field], expected[number][field])

    @unittest.skipUnless(smollm2() and not SANITIZED, "the demo model is absent, or a sanitizer")
    def test_a_chat_on_each_line(self):
        lines = [{"prompt": "What is a cache?"},
                 {"prompt": "What is a cache?", "system": "Answer in one word."},
                 {"prompt": "Say yes.", "temperature": 0.5, "seed": 3}]
        results, _ = self.answers(lines, "--chat", "--system", "Be short.", "--max-tokens", "8",
                                  model=smollm2())
        for number, line in enumerate(lines, 1):
            alone = decode("--chat", "--no-offload", "--hash-logits", "--max-tokens", "8",
                           *options_of({"system": "Be short."} | line), model=smollm2())
            for field in FIELDS:
                self.assertEqual(results[number][field], alone[field], (number, field))


class Lines(Prompts):
    def test_a_broken_line_is_an_error_of_its_own(self):
        good = {"prompt": "the moon", "max_tokens": 3}
        broken = (
            ("{", "not JSON"), ('{"prompt": "x"} more', "not JSON"), ("[1]", "JSON object"),
            ("5", "not JSON"), ({"max_tokens": 3}, '"prompt" is missing'),
            ({"prompt": 5}, "has to be a text"), ({"prompt": None}, "missing"),
            ({"prompt": ""}, "empty"), ({"prompt": []}, "empty"), ({"prompt": [1, -1]}, "entry 1"),
            ({"prompt": [10**9]}, "entry 0"), ({"prompt": ["a"]}, "entry 0"),
            (good | {"max_tokens": "3"}, "max_tokens"), (good | {"max_tokens": -1}, "max_tokens"),
            (good | {"max_tokens": 1.5}, "max_tokens"), (good | {"promt": "x"}, '"promt"'),
            (good | {"top-k": 3}, '"top-k"'), (good | {"temperature": "hot"}, "temperature"),
            (good | {"temperature": -1}, "0 to 1000"), (good | {"top_k": 1.5}, "top_k"),
            (good | {"seed": True}, "seed"), (good | {"seed": -1}, "seed"),
            ('{"prompt": "x", "seed": 99999999999999999999}', "too big"),
            (good | {"stop": [""]}, "stop"), (good | {"stop": {}}, "stop"),
            (good | {"stop": ["x"] * 33}, "32"), (good | {"logit_bias": [1]}, "logit_bias"),
            (good | {"logit_bias": {"x": 1}}, "logit_bias"),
            (good | {"logit_bias": {"1": "low"}}, "logit_bias"),
            (good | {"logit_bias": {"1": "1." + "0" * 40 + "x"}}, "logit_bias"),
            (good | {"logit_bias": {"99999999": 1}}, "vocabulary"),
            (good | {"system": "x"}, "--chat"), (good | {"prompt_tokens": 0}, "prompt_tokens"),
            ({"prompt": "the moon " * 2000}, "the context holds"),
            ({"prompt": "a\0b"}, "\\u0000"), (b'{"prompt": "a\0b"}', "not JSON"),
            (b'{"prompt": "\xff"}', "not JSON"), ('{"prompt": "a", "prompt": "b"}', "duplicate"),
            ("[" * 5000, "not JSON"), (good | {"prompt": "\ud800"}, "not JSON"))
        lines = []
        for line, _ in broken:
            lines += [line, good]
        results, summary = self.answers(lines, "--parallel", "3", status=1)
        self.assertEqual(len(results), 2 * len(broken))
        for i, (line, says) in enumerate(broken):
            self.assertIn(says, results[2 * i + 1].get("error", results[2 * i + 1]), line)
            self.assertEqual(results[2 * i + 2]["logits_sha256"], results[2]["logits_sha256"])
        self.assertEqual((summary["done"], summary["failed"]), (len(broken), len(broken)))

    def test_what_an_error_names_may_be_long_and_of_any_letters(self):
        good = {"prompt": "the moon", "max_tokens": 3}
        for shift in range(2):
            text = "x" * shift + "\u00e9" * 200
            fields = ({text: 1}, {text: "x"}, {"x-" + text: 1}, {"stop": [text] * 33},
                      {"logit_bias": {text: 1}}, {"logit_bias": {text: text}},
                      {"logit_bias": {"1": text}}, {"logit_bias": {text: []}},
                      *({name: text} for name in (
                          "max_tokens", "prompt_tokens", "system", "logit_bias", "temperature",
                          "top_k", "top_p", "min_p", "typical", "repeat_penalty", "repeat_last_n",
                          "presence_penalty", "frequency_penalty", "seed")),
                      {"prompt": {text: 1}}, {"prompt": [text]}, {"id": text, "stop": [""]})
            broken = [good | field for field in fields]
            broken += [f'{{"prompt": "a", "{text}": 1, "{text}": 2}}', f'{{"prompt": {text}}}',
                       f'{{"prompt": "{text}', f'{text}', f'["{text}"]']
            lines = [line for each in broken for line in (each, good)]
            results, summary = self.answers(lines, "--parallel", "3", status=1)
            self.assertEqual(sorted(results), list(range(1, len(lines) + 1)))
            for i, line in enumerate(broken):
                self.assertIn("error", results[2 * i + 1], line)
                self.assertEqual(results[2 * i + 2]["logits_sha256"], results[2]["logits_sha256"])
            self.assertEqual((summary["done"], summary["failed"]), (len(broken), len(broken)))
            self.assertIn("\u00e9" * 40, results[1]["error"])

    def test_ids_come_back_as_they_are(self):
        ids = (7, "x", None, {"a": [1, "\u20ac"]}, 0.5, False)
        lines = [{"id": value, "prompt": "moon", "max_tokens": 1} for value in ids]
        results, _ = self.answers([*lines, {"id": "bad"}, {"prompt": "x", "max_tokens": 0}],
                                  status=1)
        for number, value in enumerate(ids, 1):
            self.assertEqual(results[number]["id"], value)
        self.assertEqual((results[7]["id"], "error" in results[7]), ("bad", True))
        self.assertNotIn("id", results[8])

    def test_how_lines_may_be_written(self):
        file = self.folder / "odd.jsonl"
        file.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 1}\r\n\n  \t\r\n'
                         b'  {"prompt": "a", "max_tokens": 1, "seed": null}  \n'
                         b'{"prompt": [1, 2, 3], "max_tokens": 1, "prompt_tokens": 2}')
        results, _ = self.answers(file)
        self.assertEqual(sorted(results), [1, 4, 5])
        self.assertEqual(results[5]["prompt_tokens"], 2)
        self.assertEqual(self.answers([])[1]["done"], 0)

    def test_a_line_that_is_too_long_is_passed_over(self):
        good = json.dumps({"prompt": "moon", "max_tokens": 1}).encode()
        long = b'{"prompt": "' + b"x" * (17 << 20) + b'"}'
        results, _ = self.answers([good, long, good, long], status=1)
        self.assertEqual(sorted(results), [1, 2, 3, 4])
        for number in (2, 4):
            self.assertIn("16 MiB", results[number]["error"])
        self.assertEqual(results[3]["text"], results[1]["text"])


class Running(Prompts):
    def start(self, *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE):
        process = subprocess.Popen(self.command(*words), stdout=stdout, stdin=stdin,
                                   stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def test_results_come_while_lines_do(self):
        process = self.start("-", "--no-offload", stdin=subprocess.PIPE)
        with process.stdin as pipe:
            for i in range(3):
                pipe.write(json.dumps({"id": i, "prompt": "the moon", "max_tokens": 2}).encode())
                pipe.write(b"\n")
                pipe.flush()
                self.assertEqual(json.loads(process.stdout.readline())["id"], i)
            # One that is answered while the next is half written.
            pipe.write(b'{"id": 3, "prompt": "a", "max_tokens": 2}\n{"id": 4, "pro')
            pipe.flush()
            self.assertEqual(json.loads(process.stdout.readline())["id"], 3)
            pipe.write(b'mpt": "b", "max_tokens": 2}')
        results, summary = self.sorted_out(process.stdout.read())
        self.assertEqual(results[5]["id"], 4)
        self.assertEqual(summary["done"], 5)
        self.assertEqual(process.wait(timeout=60), 0)

    def test_a_named_pipe_is_opened_once(self):
        fifo = self.folder / "lines"
        os.mkfifo(fifo)
        process = self.start(fifo, "--no-offload")
        # All is written, and the writer gone, before the model can have been loaded.
        with fifo.open("wb") as pipe:
            for i in range(3):
                pipe.write(json.dumps({"id": i, "prompt": "the moon", "max_tokens": 2}).encode())
                pipe.write(b"\n")
        out, _ = process.communicate(timeout=60)
        results, summary = self.sorted_out(out)
        self.assertEqual([results[number]["id"] for number in (1, 2, 3)], [0, 1, 2])
        self.assertEqual((summary["done"], process.returncode), (3, 0))

    def test_when_results_cannot_be_written_no_answer_goes_on(self):
        short = {"prompt": "the moon", "max_tokens": 1}
        endless = {"prompt": "a river", "max_tokens": 1000000}
        file = self.write([endless, endless, short, *[endless] * 20])
        self.start_daemon()
        with open("/dev/full", "wb") as full:
            process = self.start(file, "--connect", self.address, "--parallel", "3", stdout=full)
        _, said = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(said.decode().strip(), "kvloft-decode: cannot write the output")
        self.wait_for_leases()
        self.assertEqual(self.tool("ls")["blocks"], [])  # no answer was long enough for one

    def test_an_interrupt_ends_with_what_is_done(self):
        short = {"prompt": "the moon", "max_tokens": 1}
        endless = {"prompt": "a river", "max_tokens": 1000000}
        process = self.start("-", "--no-offload", "--parallel", "3", stdin=subprocess.PIPE)
        process.stdin.write(b"".join(json.dumps(line).encode() + b"\n"
                                     for line in (endless, short, *[endless] * 20)))
        process.stdin.flush()
        first = process.stdout.readline()
        self.assertEqual(json.loads(first)["line"], 2)
        process.send_signal(signal.SIGINT)
        results, summary = self.sorted_out(first + process.stdout.read())
        process.stdin.close()
        self.assertEqual(process.wait(timeout=60), 1)
        self.assertEqual(summary["done"] + summary["interrupted"], len(results))
        self.assertEqual(summary["failed"], 0)
        self.assertGreaterEqual(summary["interrupted"], 1)
        self.assertLess(len(results), 22)
        for result in results.values():
            if result["line"] != 2 and result["stop_reason"] == "interrupted":
                whole = decode("--prompt", "a river", "--max-tokens",
                               len(result["output_tokens"]) or 1, "--no-offload")
                self.assertEqual(whole["output_tokens"][:len(result["output_tokens"])],
                                 result["output_tokens"])

    def test_an_interrupt_while_it_waits_for_lines(self):
        process = self.start("-", "--no-offload", stdin=subprocess.PIPE)
        process.stdin.write(b'{"prompt": "the moon", "max_tokens": 1}\n')
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=60), 1)
        process.stdin.close()

    def test_without_json_the_totals_are_for_people(self):
        file = self.write([{"prompt": "the moon", "max_tokens": 2}] * 3)
        done = run(BIN / "kvloft-decode", "--model", TINY, "--prompts", file)
        self.assertEqual([json.loads(line)["line"] for line in done.stdout.splitlines()], [1, 2, 3])
        self.assertIn("3 prompts answered, 0 failed", done.stderr)
        self.assertIn("tokens/s", done.stderr)

    def test_wrong_usage(self):
        file = self.write([{"prompt": "x"}])
        for words, says in ((("--prompt", "x"), "--prompt"), (("--session", "s"), "--session"),
                            (("--tokenize",), "--tokenize"), (("--perplexity",), "--perplexity"),
                            (("--no-cache",), "--no-cache"), (("--parallel", "0"), "1 to 64"),
                            (("--parallel", "65"), "1 to 64"), (("--host-bytes", "1M"), "embedded"),
                            (("--no-offload", "--device-bytes", "1M"), "embedded")):
            done = run(*self.command(file, *words), check=False)
            self.assertEqual(done.returncode, 2, words)
            self.assertIn(says, done.stderr)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        done = run(BIN / "kvloft-decode", "--model", TINY, "--prompt", "x", "--parallel", "2",
                   check=False)
        self.assertEqual(done.returncode, 2)
        for name, says in ((self.folder / "none", "none"), (self.folder, "directory")):
            done = run(*self.command(name), check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn(says, done.stderr)


if __name__ == "__main__":
    harness.main()
