#!/usr/bin/env python3
"""How tokens are chosen and where a text stops, through kvloft-decode's options."""
import unittest

from harness import BIN, TINY, Case, decode, run

PROMPT = ("--prompt", "the moon", "--max-tokens", "40", "--no-offload")


def shown(*words):
    return run(BIN / "kvloft-decode", "--model", TINY, *PROMPT, *words).stdout.decode()


class Sampling(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.whole = decode(*PROMPT)
        cls.text = cls.whole["text"]
        assert len(cls.text) > 30, cls.text

    def test_a_stop_string_ends_the_text_before_it(self):
        stop = self.text[15:19]
        at = self.text.index(stop)
        result = decode(*PROMPT, "--stop", stop, "--stop", "no such text")
        self.assertEqual(result["text"], self.text[:at])
        self.assertEqual(result["stop_reason"], "stop")
        self.assertLess(len(result["output_tokens"]), len(self.whole["output_tokens"]))
        self.assertEqual(result["output_tokens"],
                         self.whole["output_tokens"][:len(result["output_tokens"])])
        self.assertEqual(shown("--stop", stop), self.text[:at] + "\n")

    def test_a_stop_string_that_never_comes_changes_nothing(self):
        for stop in ("no such text", self.text[-3:] + "\u20ac", self.text[:-1] + "\u20ac"):
            result = decode(*PROMPT, "--stop", stop)
            self.assertEqual(result["text"], self.text)
            self.assertEqual(result["output_tokens"], self.whole["output_tokens"])
            self.assertEqual(result["stop_reason"], self.whole["stop_reason"])
            self.assertEqual(shown("--stop", stop), self.text + "\n")

    def test_a_forbidden_token_is_not_chosen(self):
        first = self.whole["output_tokens"][0]
        result = decode(*PROMPT, "--logit-bias", f"{first}=-inf")
        self.assertNotIn(first, result["output_tokens"])
        result = decode(*PROMPT, "--logit-bias", f"{first}=inf")
        self.assertEqual(set(result["output_tokens"]), {first})

    def test_a_penalty_ends_a_repetition(self):
        first = self.whole["output_tokens"][0]
        result = decode(*PROMPT, "--logit-bias", f"{first}=30", "--presence-penalty", "100",
                        "--repeat-last-n", "1")
        chosen = result["output_tokens"]
        self.assertEqual(chosen[0], first)
        self.assertTrue(all(a != b for a, b in zip(chosen, chosen[1:])), chosen)

    def test_filters_and_seeds(self):
        words = ("--temperature", "1.5", "--top-p", "0.9", "--min-p", "0.01", "--typical", "0.95")
        one, same, other = (decode(*PROMPT, *words, "--seed", seed)["output_tokens"]
                            for seed in ("7", "7", "8"))
        self.assertEqual(one, same)
        self.assertNotEqual(one, other)
        greedy = decode(*PROMPT, "--temperature", "1.5", "--top-k", "1", "--seed", "7")
        self.assertEqual(greedy["output_tokens"], self.whole["output_tokens"])

    def test_wrong_values_are_named(self):
        for words, says in ((("--top-p", "1.5"), "0.001 to 1"), (("--min-p", "x"), "0 to 1"),
                            (("--top-k", "-1"), "from 0 on"), (("--logit-bias", "x=1"), "ID=VALUE"),
                            (("--logit-bias", "1=nan"), "ID=VALUE"), (("--stop", ""), "empty"),
                            (("--repeat-penalty", "0"), "0.01 to 100"),
                            (("--chat-template", "chatml"), "--chat"),
                            (("--seed", "1.5"), "not a number")):
            done = run(BIN / "kvloft-decode", "--model", TINY, *PROMPT, *words, check=False)
            self.assertEqual(done.returncode, 2, words)
            self.assertIn(says, done.stderr)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        for words, says in ((("--logit-bias", "99999999=1"), "vocabulary"),
                            (("--chat", "--chat-template", "nobodys"), "chatml, llama-2")):
            done = run(BIN / "kvloft-decode", "--model", TINY, *PROMPT, *words, check=False)
            self.assertEqual(done.returncode, 1, words)
            self.assertIn(says, done.stderr)


if __name__ == "__main__":
    unittest.main()
