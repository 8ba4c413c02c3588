#!/usr/bin/env python3
"""The real daemon and engine on a GPU: the same bits however a token's KV came to be where it is.

Models are random ones of a shape of its own, and the tiny golden one; nothing has to be fetched.
$KVLOFT_TEST_DEVICE names another device, e.g. cpu: the same checks then run without a GPU.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import harness  # noqa: E402
from harness import BIN, TINY, restored, run  # noqa: E402

DEVICE = os.environ.get("KVLOFT_TEST_DEVICE", "cuda")
BLOCK = 64
# 512 KiB of KV a block in f16: 64 tokens, 8 layers, 4 KV heads, 64 + 64 numbers.
SHAPE = {"layers": 8, "width": 1024, "ffn_width": 2048, "heads": 16, "kv_heads": 4, "vocab": 4096,
         "context_max": 16384}
BLOCK_BYTES = 512 << 10
FAR_HOST_BLOCKS = 8  # the least that a GPU's daemon takes
PROMPT = 1500  # in tokens; the last block is not whole
WHOLE = PROMPT // BLOCK * BLOCK
# Long enough to be caught at it: a GPU is done with a short one before anybody looks.
LONG_PROMPT, LONG_ANSWER = (2000, 300) if DEVICE == "cpu" else (16000, 4000)


class Case(harness.Case):
    def setUp(self):
        super().setUp()
        self.shape = self.folder / "shape.json"
        self.shape.write_text(json.dumps(SHAPE))

    def daemon_command(self, device="64M", host="64M", disk="512M", extra=(), kind=DEVICE):
        command = super().daemon_command(device, host, disk, extra)
        command[command.index("--device") + 1] = kind
        return command

    def words(self, *words, tokens=PROMPT, new=16, kind=DEVICE):
        return [str(word) for word in (
            BIN / "kvloft-decode", "--random-model", self.shape, "--seed", "5", "--device", kind,
            "--ctx", SHAPE["context_max"], "--prompt-tokens", tokens, "--max-tokens", new, "--json",
            "--hash-logits", *words)]

    def alone(self, **options):
        return json.loads(run(*self.words("--no-offload", **options)).stdout)

    def ask(self, *words, **options):
        return json.loads(run(*self.words("--connect", self.address, *words, **options)).stdout)

    def begin(self, **options):
        process = subprocess.Popen(self.words("--connect", self.address, **options),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def end(self, process):
        out, err = process.communicate(timeout=80)
        self.assertEqual(process.returncode, 0, err.decode(errors="replace")[-2000:])
        return json.loads(out), err.decode(errors="replace")

    def device_blocks(self):
        return self.tool("status")["tiers"]["device"]["blocks"]

    def assert_same(self, result, expected):
        self.assertEqual(result["output_tokens"], expected["output_tokens"])
        self.assertEqual(result["logits_sha256"], expected["logits_sha256"])


class Bits(Case):
    def demote(self, tier):
        """What the session's engine left behind, to one tier; nothing of it stays above."""
        self.tool("demote", "--session", "s", "--tier", tier)

    def check_every_tier(self):
        expected = self.alone()
        self.assertEqual(expected["backend"], DEVICE.split(":")[0])
        self.assertTrue(expected["random_model"])
        daemon = self.start_daemon()
        cold = self.ask("--session", "s")
        self.assertEqual(restored(cold), 0)
        self.assertEqual(cold["computed_tokens"], PROMPT)
        self.assert_same(cold, expected)
        for tier in ("device", "host", "disk"):
            if tier != "device":
                self.demote(tier)
            warm = self.ask()
            self.assert_same(warm, expected)
            self.assertEqual(warm["restored_tokens"][tier], WHOLE, warm["restored_tokens"])
        self.assertEqual(self.tool("verify")["bad"], 0)
        self.tool("flush")
        self.stop(daemon, signal.SIGKILL)
        self.start_daemon()
        again = self.ask()
        self.assert_same(again, expected)
        self.assertEqual(again["restored_tokens"]["disk"], WHOLE)
        self.assertEqual(self.tool("verify")["bad"], 0)

    def test_restored_from_every_tier_and_after_a_kill(self):
        self.check_every_tier()

    def test_windowed_layers_restored_from_every_tier_and_after_a_kill(self):
        self.shape.write_text(json.dumps({**SHAPE, "window": 150}))
        self.check_every_tier()

    def test_a_session_goes_on_with_its_tail(self):
        self.start_daemon()
        first = self.ask("--session", "s", new=20)
        second = self.ask("--session", "s", tokens=100, new=4)
        # All but the last token chosen, which nobody computed, is there: whole blocks and a tail.
        self.assertEqual(restored(second), PROMPT + len(first["output_tokens"]) - 1)
        self.assertEqual(second["computed_tokens"], 101)
        self.demote("host")
        third = self.ask("--session", "s", tokens=10, new=4)
        self.assertEqual(third["computed_tokens"], 11)

    def test_context_larger_than_the_device_tier(self):
        expected = self.alone()
        blocks = WHOLE // BLOCK // 2
        self.start_daemon(device=blocks * BLOCK_BYTES, host=FAR_HOST_BLOCKS * BLOCK_BYTES)
        for _ in range(2):
            result = self.ask()
            self.assert_same(result, expected)
            self.assertGreater(result["private_tokens"], 0)
        self.assertGreater(restored(result), 0)

    def test_embedded(self):
        expected = self.alone()
        for known in (0, WHOLE):
            result = json.loads(run(*self.words(
                "--embedded", self.disk, "--device-bytes", "64M", "--host-bytes", "64M",
                "--disk-bytes", "512M")).stdout)
            self.assert_same(result, expected)
            self.assertEqual(restored(result), known)

    def test_a_file_of_weights(self):
        words = ("--device", DEVICE, "--prompt-file", self.prompt(300), "--max-tokens", "24",
                 "--hash-logits")
        expected = harness.decode(*words, "--no-offload")
        self.start_daemon()
        for known in (False, True):
            result = self.engine(*words)
            self.assert_same(result, expected)
            self.assertEqual(restored(result) > 0, known)


class Others(Case):
    def test_two_engines_share_the_arena(self):
        """The second restores what the first is still decoding."""
        long, short = self.alone(new=LONG_ANSWER), self.alone(new=8)
        self.start_daemon()
        first = self.begin(new=LONG_ANSWER)
        self.wait_until(lambda: self.device_blocks() >= WHOLE // BLOCK)
        first.send_signal(signal.SIGSTOP)
        self.assertIsNone(first.poll(), "it was done before it could be stopped")
        second = self.ask(new=8)
        self.assertEqual(second["restored_tokens"]["device"], WHOLE)
        self.assert_same(second, short)
        first.send_signal(signal.SIGCONT)
        result, _ = self.end(first)
        self.assert_same(result, long)

    def test_daemon_killed_during_decode(self):
        expected = self.alone(new=LONG_ANSWER)
        daemon = self.start_daemon()
        engine = self.begin(new=LONG_ANSWER)
        self.wait_until(lambda: self.device_blocks() >= WHOLE // BLOCK)
        engine.send_signal(signal.SIGSTOP)
        self.stop(daemon, signal.SIGKILL)
        engine.send_signal(signal.SIGCONT)
        result, err = self.end(engine)
        self.assert_same(result, expected)
        self.assertTrue(result["daemon_lost"])
        self.assertGreaterEqual(result["private_tokens"], WHOLE)
        self.assertIn("lost the kvloft daemon", err)

    def kill_at_many_moments(self, before=None, **options):
        """An engine at work is killed; each time its slots come back. How often leases were seen."""
        seen = 0
        for later_s in (0, 0.005, 0.02, 0.05):
            if before:
                before()
            engine = self.begin(**options)
            self.wait_until(
                lambda: engine.poll() is not None or self.tool("status")["leases"] > 0)
            time.sleep(later_s)
            engine.send_signal(signal.SIGSTOP)
            seen += self.tool("status")["leases"] > 0
            engine.kill()
            engine.wait(timeout=60)
            self.wait_until(lambda: self.tool("status")["leases"] == 0)
        return seen

    def test_engine_killed_in_prefill_gives_its_slots_back(self):
        options = {"tokens": LONG_PROMPT, "new": 4}
        blocks = LONG_PROMPT // BLOCK + 1
        expected = self.alone(**options)
        self.start_daemon(device=(blocks + 4) * BLOCK_BYTES, host=FAR_HOST_BLOCKS * BLOCK_BYTES,
                          disk="4G")
        seen = self.kill_at_many_moments(lambda: self.tool("clear", "--all"), **options)
        self.assertGreater(seen, 0, "never caught with a lease")
        self.tool("clear", "--all")
        result = self.ask(**options)
        self.assert_same(result, expected)
        self.assertLess(result["private_tokens"], BLOCK)
        self.assertEqual(self.tool("verify")["bad"], 0)

    def test_engine_killed_while_it_restores(self):
        expected = self.alone()
        self.start_daemon()
        self.ask("--session", "s")
        self.kill_at_many_moments(
            lambda: self.tool("demote", "--session", "s", "--tier", "disk"))
        self.assert_same(self.ask(), expected)
        self.assertEqual(self.tool("verify")["bad"], 0)


@unittest.skipIf(DEVICE == "cpu", "one kind of memory only")
class Mismatch(Case):
    def refused(self, kind):
        done = run(*self.words("--connect", self.address, kind=kind), check=False)
        self.assertEqual(done.returncode, 1, done.stderr)
        return done.stderr

    def test_engine_on_the_cpu(self):
        self.start_daemon()
        self.assertRegex(self.refused("cpu"), "GPU's memory.*--device cuda")

    def test_daemon_on_the_cpu(self):
        self.start_daemon(kind="cpu")
        self.assertRegex(self.refused(DEVICE), "CPU's memory.*--device cpu")


def skip_without_device():
    if not (BIN / "kvloft-decode").exists():
        return f"{BIN}/kvloft-decode is not built"
    done = run(BIN / "kvloft-decode", "--model", TINY, "--device", DEVICE, "--prompt", "a",
               "--max-tokens", "1", "--no-offload", check=False)
    if done.returncode == 0:
        return None
    # A GPU that is there but does not work is a failure, not a skip.
    there = os.path.exists("/dev/nvidiactl") and "no CUDA backend" not in done.stderr
    return None if there else done.stderr.strip() or "no GPU"


if __name__ == "__main__":
    WHY = skip_without_device()
    if WHY:
        print(f"skipped: {WHY}")
        sys.exit(77)
    unittest.main(verbosity=2)
