#!/usr/bin/env python3
"""Bad luck: daemons and engines that die or stop at the wrong moment, tiers that are too small.
Whatever happens, an engine's bits are those it has alone."""
import os
import signal
import time

import harness
from harness import Case, decode, finish, needs_smollm2, restored, smollm2

PROMPT_WORDS = 1500  # some seconds of prefill on two cores


@needs_smollm2
class BadLuck(Case):
    alone = {}

    def words(self, prompt_words=PROMPT_WORDS, tokens=24, seed=1):
        return ["--prompt-file", self.prompt(prompt_words, f"p{seed}.txt", seed), "--max-tokens",
                str(tokens), "--hash-logits"]

    def expected(self, **prompt):
        """What an engine computes alone, once per prompt."""
        name = str(sorted(prompt.items()))
        if name not in self.alone:
            self.alone[name] = decode(*self.words(**prompt), "--no-offload", model=smollm2())
        return self.alone[name]["logits_sha256"]

    def spawn_smollm2(self, **prompt):
        return self.spawn(*self.words(**prompt), model=smollm2())

    def ask(self, **prompt):
        return self.engine(*self.words(**prompt), model=smollm2())

    def sealed(self):
        return self.tool("status")["sealed_blocks"]

    def check_daemon_killed(self, delay_after_blocks):
        daemon = self.start_daemon(device="256M", host="64M", disk="512M")
        engine = self.spawn_smollm2()
        self.wait_until(lambda: self.sealed() >= delay_after_blocks)
        self.stop(daemon, signal.SIGKILL)
        result = finish(engine)
        self.assertTrue(result["daemon_lost"])
        self.assertEqual(result["logits_sha256"], self.expected())

    def test_daemon_dies_in_mid_prefill(self):
        self.check_daemon_killed(8)

    def test_daemon_dies_in_decode_and_comes_back(self):
        daemon = self.start_daemon(device="256M", host="64M", disk="512M")
        engine = self.spawn_smollm2(tokens=300)
        whole = len(decode("--prompt-file", self.prompt(PROMPT_WORDS, "p1.txt"), "--tokenize",
                           model=smollm2())["tokens"]) // 64
        self.wait_until(lambda: self.sealed() >= whole)
        self.stop(daemon, signal.SIGKILL)
        self.start_daemon(device="256M", host="64M", disk="512M")
        result = finish(engine)
        self.assertTrue(result["daemon_lost"])
        self.assertEqual(result["logits_sha256"], self.expected(tokens=300))
        again = self.ask()
        self.assertGreaterEqual(restored(again), whole * 64 - 64)

    def test_daemon_dies_in_mid_restore(self):
        daemon = self.start_daemon(device="256M", host="64M", disk="512M")
        self.ask()
        self.tool("flush")
        for delay in (0.05, 0.1, 0.15, 0.2, 0.3):
            self.stop(daemon, signal.SIGKILL)
            daemon = self.start_daemon(device="256M", host="64M", disk="512M")
            engine = self.spawn_smollm2()
            time.sleep(delay)
            self.stop(daemon, signal.SIGKILL)
            out, err = engine.communicate(timeout=300)
            if engine.returncode == 0:
                self.assertIn(self.expected().encode(), out)
            else:  # it had not connected yet: a clear error
                self.assertEqual(len(err.strip().splitlines()), 1)
            daemon = self.start_daemon(device="256M", host="64M", disk="512M")

    def test_an_engine_killed_while_filling_leaves_nothing_and_another_goes_on(self):
        self.start_daemon(device="256M", host="64M", disk="512M")
        victim = self.spawn_smollm2()
        other = self.spawn_smollm2()  # the same prompt: it meets keys that are being filled
        self.wait_until(lambda: self.sealed() >= 3)
        victim.kill()
        result = finish(other)
        self.assertEqual(result["logits_sha256"], self.expected())
        self.wait_for_leases(0)
        self.assertEqual(self.tool("verify")["bad"], 0)
        again = self.ask()
        self.assertGreater(restored(again), 0)
        self.assertEqual(again["logits_sha256"], self.expected())

    def test_a_stopped_engine_keeps_its_leases_and_nobody_waits_for_it(self):
        self.start_daemon(device="256M", host="64M", disk="512M")
        stopped = self.spawn_smollm2()
        self.wait_until(lambda: self.sealed() >= 3)
        stopped.send_signal(signal.SIGSTOP)
        leases = self.tool("status")["leases"]
        self.assertGreater(leases, 0)
        self.assertEqual(self.ask()["logits_sha256"], self.expected())
        self.assertGreaterEqual(self.tool("status")["leases"], leases)
        stopped.send_signal(signal.SIGCONT)
        self.assertEqual(finish(stopped)["logits_sha256"], self.expected())
        self.wait_for_leases(0)

    def test_a_context_larger_than_the_device_tier(self):
        self.start_daemon(device="16M", host="64M", disk="512M")
        result = self.ask()
        self.assertGreater(result["private_tokens"], 0)
        self.assertEqual(result["logits_sha256"], self.expected())

    def test_two_contexts_that_together_are_larger_than_the_device_tier(self):
        self.start_daemon(device="40M", host="64M", disk="512M")
        engines = [self.spawn_smollm2(seed=seed, prompt_words=1200) for seed in (1, 2)]
        results = [finish(engine) for engine in engines]
        for seed, result in zip((1, 2), results):
            self.assertEqual(result["logits_sha256"],
                             self.expected(seed=seed, prompt_words=1200))
        self.assertGreater(sum(result["private_tokens"] for result in results), 0)

    def test_a_second_engine_finds_what_the_first_has_prefilled_while_it_decodes(self):
        self.start_daemon(device="256M", host="64M", disk="512M")
        first = self.spawn_smollm2(tokens=400)
        whole = len(decode("--prompt-file", self.prompt(PROMPT_WORDS, "p1.txt"), "--tokenize",
                           model=smollm2())["tokens"]) // 64
        self.wait_until(lambda: self.sealed() >= whole)
        second = self.ask()
        self.assertIsNone(first.poll())
        self.assertGreaterEqual(restored(second), whole * 64 - 64)
        self.assertEqual(second["logits_sha256"], self.expected())
        finish(first)


harness.main()
