#!/usr/bin/env python3
"""Draws what kvl_bench_gpu_timeline told: of each layer, when its blocks had arrived from pinned host
memory, and when the GPU computed it.

    kvl_bench_gpu_timeline > timeline.json
    bench/plot_timeline.py timeline.json docs/gpu_timeline      (.svg and .png)

Needs Debian's python3-matplotlib (run it with /usr/bin/python3 where another Python comes first)."""
import argparse
import json
import sys

try:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
except ImportError:
    sys.exit("plot_timeline: no matplotlib: apt-get install python3-matplotlib")

ARRIVAL, COMPUTE = 1, 0
COLORS = ("#4477aa", "#66aacc")  # layers take turns
WAIT = "#ee8866"


def draw_lane(axes, lane, spans):
    for layer, (began, ended) in enumerate(spans):
        axes.barh(lane, ended - began, left=began, height=0.62, color=COLORS[layer % 2],
                  edgecolor="white", linewidth=0.4)
    # As many numbers as there is room for.
    step = max(1, len(spans) // 16)
    for layer in range(0, len(spans), step):
        began, ended = spans[layer]
        axes.text((began + ended) / 2, lane + 0.37, str(layer), ha="center", va="bottom", fontsize=7)


def arrivals(layers):
    """A layer is on its way from the arrival of the one before it until its own."""
    times = [0.0] + [layer["arrived_ms"] for layer in layers]
    return list(zip(times, times[1:]))


def draw(data, axes):
    layers = data["layers"]
    computed = [(layer["began_ms"], layer["ended_ms"]) for layer in layers]
    draw_lane(axes, ARRIVAL, arrivals(layers))
    draw_lane(axes, COMPUTE, computed)
    for (_, ended), (began, _) in zip(computed, computed[1:]):
        if began - ended > 0.02:
            axes.barh(COMPUTE, began - ended, left=ended, height=0.12, color=WAIT)
    axes.text(0, COMPUTE - 0.42, "orange: the GPU waits for the next layer", fontsize=8, color=WAIT,
              va="top")
    axes.axvline(data["total_ms"], color="black", linewidth=0.8, linestyle=":")
    axes.text(data["total_ms"], 1.5, f" first token\n {data['total_ms']:.1f} ms", fontsize=8,
              va="top")
    axes.set_yticks([COMPUTE, ARRIVAL], ["computed", "arrived from host"])
    axes.set_ylim(-0.6, 1.75)
    axes.set_xlim(0, data["total_ms"] * 1.13)
    axes.set_xlabel("ms since the call")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def title(data):
    gigabytes = data["restored_bytes"] / 1e9
    kind = "random weights, " if data["random_model"] else ""
    return (f"{data['restored_tokens']:,} tokens restored ({gigabytes:.2f} GB), "
            f"{data['computed_tokens']:,} computed behind them, layer by layer\n"
            f"{data['model']} ({kind}f16), {data['gpu']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("timeline", help="what kvl_bench_gpu_timeline printed")
    parser.add_argument("out", help="path without .svg and .png")
    options = parser.parse_args()
    with open(options.timeline) as file:
        data = json.load(file)
    if not data["layers"]:
        sys.exit("plot_timeline: no layers in it: it was made without a GPU")
    figure, axes = pyplot.subplots(figsize=(11, 3.4), layout="constrained")
    draw(data, axes)
    axes.set_title(title(data), fontsize=10, loc="left")
    for kind in ("svg", "png"):
        figure.savefig(f"{options.out}.{kind}", dpi=150)


main()
