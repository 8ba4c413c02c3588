#!/usr/bin/env python3
"""Draws what bench/engine_vs_llamacpp --json printed.

    bench/plot_engines.py report.json docs/engine_vs_llamacpp      (.svg and .png; - reads stdin)

Needs Debian's python3-matplotlib (run it with /usr/bin/python3 where another Python comes first)."""
import argparse
import json
import sys

try:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator
except ImportError:
    sys.exit("plot_engines: no matplotlib: apt-get install python3-matplotlib")

KVLOFT, LLAMA, TORCH, PEAK = "#2f6f9f", "#8a8a8a", "#cc8844", "#bbbbbb"


class Report:
    def __init__(self, report):
        self.settings = report["settings"]
        self.machine = report["machine"]
        self.results = report["results"]

    def of_kind(self, kind, model=None):
        return [r for r in self.results
                if r.get("kind") == kind and (model is None or r.get("model") == model)]

    def at_the_peak(self, speed):
        """The tokens a second that the machine's peak would be good for."""
        shares = [r["ratio"] for r in self.of_kind("share") if r.get("of") == speed["name"]]
        return speed["value"] / shares[0]


def draw_line(axes, tokens, values, name, **style):
    axes.plot(tokens, values, **style)
    axes.annotate(name, (tokens[-1], values[-1]), xytext=(7, 0), textcoords="offset points",
                  fontsize=8, va="center", color=style["color"])


def draw_speed(axes, report, kind, title, xlabel, peak_name):
    speeds = report.of_kind(kind, report.settings["model"])
    tokens = [s["tokens"] for s in speeds]
    draw_line(axes, tokens, [report.at_the_peak(s) for s in speeds], peak_name, color=PEAK,
              linestyle=":")
    draw_line(axes, tokens, [s["value"] for s in speeds], "kvloft", color=KVLOFT, marker="o")
    draw_line(axes, tokens, [s["limit"] for s in speeds], "llama.cpp", color=LLAMA, marker="o")
    torch = report.of_kind("torch") if kind == "prefill" else []
    if torch:
        draw_line(axes, [t["tokens"] for t in torch], [t["limit"] for t in torch], "PyTorch, f32",
                  color=TORCH, marker="s")
    for speed in speeds:
        above = 6 if speed is not speeds[-1] else -13  # beside the last stand the names
        axes.annotate(f"{speed['ratio']:.2f}x", (speed["tokens"], speed["value"]), fontsize=8,
                      xytext=(0, above), textcoords="offset points", ha="center", color=KVLOFT)
    axes.set_xscale("log")
    axes.set_xticks(tokens, [f"{t:,}" for t in tokens])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(tokens[0] * 0.75, tokens[-1] * (tokens[-1] / tokens[0]) ** 0.25)  # for the names
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("tokens per second")


def label_of(speed, main_model):
    file_type = speed["model"].rsplit("-to-", 1)[-1].rsplit(".", 2)
    name = file_type[1] if speed["model"] == main_model and len(file_type) > 2 else file_type[0]
    return f"{name}\n{speed['tokens']:,}"


def draw_types(axes, report):
    main_model = report.settings["model"]
    if not any(s["model"] != main_model for s in report.of_kind("prefill")):
        axes.set_visible(False)
        return
    others = {s["tokens"] for s in report.of_kind("prefill") if s["model"] != main_model}
    for shift, kind, color in ((-0.2, "prefill", KVLOFT), (0.2, "decode", "#77aacc")):
        speeds = [s for s in report.of_kind(kind)
                  if s["model"] != main_model or s["tokens"] in others]
        bars = axes.bar([i + shift for i in range(len(speeds))], [s["ratio"] for s in speeds], 0.38,
                        color=color, label=kind)
        axes.bar_label(bars, [f"{s['ratio']:.2f}" for s in speeds], fontsize=7, padding=1)
        axes.set_xticks(range(len(speeds)), [label_of(s, main_model) for s in speeds], fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.margins(y=0.2)
    axes.set_title("Times llama.cpp, by weights and tokens")
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")


def draw_pair(axes, made, title, unit):
    bars = axes.bar(["kvloft", "llama.cpp"], [made["value"], made["limit"]], color=[KVLOFT, LLAMA])
    axes.bar_label(bars, [f"{v:.0f} {unit}" for v in (made["value"], made["limit"])], fontsize=8,
                   padding=2)
    axes.set_title(title)
    axes.margins(y=0.12)


def draw(report):
    figure = pyplot.figure(figsize=(12, 7.6), layout="constrained")
    top, bottom = figure.add_gridspec(2, 1, height_ratios=[1.15, 1])
    prefill, decode = top.subgridspec(1, 2).subplots()
    types, load, memory = bottom.subgridspec(1, 3, width_ratios=[2.6, 1, 1]).subplots()
    draw_speed(prefill, report, "prefill", "Prefill", "tokens of the prompt",
               "the best GEMM's\nrate")
    draw_speed(decode, report, "decode", "Decode", "tokens in context",
               "the rate of\nreading memory")
    draw_types(types, report)
    draw_pair(load, report.of_kind("load")[0], "Load", "ms")
    at_most = report.of_kind("memory")[0]
    draw_pair(memory, at_most, "Peak memory", "MiB")
    memory.set_xlabel(f"{at_most['tokens']:,} tokens in context")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report.settings['model']}, {report.settings['threads']} threads of"
                    f" {report.machine['cpu']}", fontsize=10, x=0.01, ha="left")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", help="what engine_vs_llamacpp --json printed; - for stdin")
    parser.add_argument("out", help="path without .svg and .png")
    options = parser.parse_args()
    with sys.stdin if options.report == "-" else open(options.report) as file:
        figure = draw(Report(json.load(file)))
    for kind in ("svg", "png"):
        figure.savefig(f"{options.out}.{kind}", dpi=120)


main()
