#!/usr/bin/env python3
"""A model with sliding windows from the outside: what moves, what a session is, what is cleared."""
import harness
from harness import BIN, ROOT, Case, decode, finish, restored, run

# Three layers, of which the middle one sees everything and the others 12 tokens.
GEMMA = ROOT / "tests/golden/data/tiny_gemma2.gguf"
BLOCK = 64
PLAIN_LAYERS, WINDOW_LAYERS = 1, 2


class Windows(Case):
    def group_bytes(self):
        """Bytes of a block of either layer group, as `kvloft ls` says."""
        spaces = self.tool("ls")["namespaces"]
        self.assertEqual(sorted(space["window_tokens"] for space in spaces), [0, 12])
        for space in spaces:
            self.assertEqual(space["layers"], WINDOW_LAYERS if space["window_tokens"] else
                             PLAIN_LAYERS)
        return {space["window_tokens"]: space["block_bytes"] for space in spaces}

    def engine(self, *words, **options):
        return super().engine(*words, "--hash-logits", model=GEMMA, **options)

    def test_a_session_is_its_blocks_in_both_groups(self):
        self.start_daemon()
        words = self.prompt(130)
        more = self.prompt(40, name="more.txt", seed=2)
        turns = (("--prompt-file", words, "--max-tokens", 5),
                 ("--prompt-file", more, "--max-tokens", 5))
        first = self.engine(*turns[0], "--session", "talk")
        size = self.group_bytes()
        self.tool("flush")
        # All of group 0, and of the other what the window needs before the tail, or, should that
        # be gone, where it begins.
        end = first["prompt_tokens"] + len(first["output_tokens"]) - 1
        blocks, tail = divmod(end, BLOCK)
        self.assertGreater(tail, 12, "a window that does not reach back over the tail is meant")
        shown = self.tool("session", "show", "talk")
        self.assertEqual(shown["blocks"], (blocks + 1) + (1 + 1))
        self.assertEqual(shown["cached_blocks"], shown["blocks"])
        self.assertEqual(self.tool("pin", "--session", "talk")["blocks"], shown["blocks"])
        self.assertEqual(self.tool("unpin", "--session", "talk")["blocks"], shown["blocks"])
        self.tool("demote", "--session", "talk", "--tier", "disk")
        second = self.engine(*turns[1], "--session", "talk")
        self.assertEqual(restored(second), end)
        self.assertEqual(second["restored_tokens"]["disk"], end)
        self.assertEqual(second["restored_bytes"], (blocks + 1) * size[0] + size[12])
        self.assertEqual(self.tool("prefetch", "--session", "talk", "--tier", "host")["blocks"],
                         self.tool("session", "show", "talk")["blocks"])
        # Neither whole blocks nor tails stay behind, in either group.
        self.tool("clear", "--session", "talk")
        self.assertEqual(self.tool("ls")["blocks"], [])

    def test_a_cold_prompt_is_missed(self):
        self.start_daemon()
        self.engine("--prompt-file", self.prompt(300), "--max-tokens", 2)
        self.assertGreater(self.tool("status")["tiers"]["device"]["misses"], 0)

    def test_unpinning_a_session_leaves_no_pin(self):
        self.start_daemon()
        turns = (("--prompt-file", self.prompt(130), "--max-tokens", 5),
                 ("--prompt-file", self.prompt(200, name="more.txt", seed=2), "--max-tokens", 5))
        self.engine(*turns[0], "--session", "talk")
        self.tool("flush")
        self.assertGreater(self.tool("pin", "--session", "talk")["blocks"], 0)
        self.engine(*turns[1], "--session", "talk")
        self.assertGreater(self.tool("status")["pins"], 0)
        self.tool("unpin", "--session", "talk")
        self.assertEqual(self.tool("status")["pins"], 0)

    def test_a_restart_brings_what_the_window_needs(self):
        daemon = self.start_daemon()
        words = ("--prompt-file", self.prompt(300), "--max-tokens", 8)
        alone = decode(*words, "--no-offload", "--hash-logits", model=GEMMA)
        first = self.engine(*words)
        self.assertEqual(first["logits_sha256"], alone["logits_sha256"])
        self.stop(daemon)
        self.start_daemon()
        size = self.group_bytes()
        second = self.engine(*words)
        self.assertEqual(second["logits_sha256"], alone["logits_sha256"])
        blocks = (first["prompt_tokens"] - 1) // BLOCK
        self.assertEqual(second["restored_tokens"]["disk"], blocks * BLOCK)
        self.assertEqual(second["restored_bytes"], blocks * size[0] + size[12])

    def test_a_daemon_killed_in_the_middle_costs_no_bit(self):
        words = ("--prompt-file", self.prompt(500), "--max-tokens", 200)
        alone = decode(*words, "--no-offload", "--hash-logits", model=GEMMA)
        daemon = self.start_daemon()
        self.engine(*words)
        engine = self.spawn(*words, "--hash-logits", model=GEMMA)
        self.wait_until(lambda: self.tool("status")["leases"] > 0 or engine.poll() is not None)
        daemon.kill()
        self.assertEqual(finish(engine)["logits_sha256"], alone["logits_sha256"])

    def test_a_label_names_the_namespaces_of_one_model(self):
        self.start_daemon()
        self.engine("--prompt-file", self.prompt(200), "--max-tokens", 2)
        self.tool("flush")  # a sealed block is hashed behind the answer
        spaces = self.tool("ls")["namespaces"]
        self.assertEqual(len({space["label"] for space in spaces}), 1)
        blocks = len(self.tool("ls")["blocks"])
        self.assertGreater(blocks, 2)
        cleared = self.tool("clear", "--namespace", spaces[0]["label"])["cleared_blocks"]
        self.assertEqual(cleared, blocks)
        self.assertEqual(self.tool("ls")["blocks"], [])
        shown = run(BIN / "kvloft", "ls", "--connect", self.address).stdout.decode()
        self.assertIn("a window of 12 tokens", shown)


harness.main()
