"""The picture of a run: loss, accuracy and CIDEr by epoch."""

from __future__ import annotations

import io
from math import nan
from pathlib import Path
from typing import Any

from captionlite.training.files import write_bytes_atomically


def draw_curves(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Writes a PNG with one panel a figure; train and dev together, each data set's dev figure thin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = (("loss", "loss (nats)"), ("accuracy", "next-word accuracy"), ("cider", "CIDEr, greedy"))
    for axes, (key, label) in zip(figure.subplots(1, 3), panels, strict=True):
        trained = [record["train"].get(key, nan) for record in history]
        if key == "loss":  # a policy's loss is no cross-entropy
            trained = [nan if "reward" in r["train"] else value for r, value in zip(history, trained, strict=True)]
        if any(value == value for value in trained):
            label_of = "train, sampled" if key == "cider" else "train"
            axes.plot(epochs, trained, color="tab:gray", label=label_of)
        if key in history[0]["dev"]:
            axes.plot(epochs, [record["dev"][key] for record in history], color="tab:blue", label="dev", marker=".")
        by_dataset = history[0]["dev"].get("by_dataset", {})
        for name in by_dataset if len(by_dataset) > 1 else ():
            values = [record["dev"]["by_dataset"][name].get(key) for record in history]
            axes.plot(epochs, values, linewidth=0.8, linestyle="--", label=f"dev {name}")
        axes.set_xlabel("epoch")
        axes.set_title(label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    write_bytes_atomically(path, buffer.getvalue())
