"""Numbers → drawings that stand in a page by themselves."""

import io
from typing import Any

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#8a8f98", "#b83280")


def figure(width: float = 7.2, height: float = 3.4) -> tuple[Any, Any]:
    """A figure and its axes, in inches."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", color="#e5e7eb")
    axes.set_axisbelow(True)
    return drawing, axes


def svg(drawing: Any) -> Any:
    """A figure as inline SVG, the same each time; its letters are paths, so nothing in them is markup."""
    import matplotlib as mpl
    from markupsafe import Markup
    from matplotlib import pyplot as plt

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "slam", "svg.fonttype": "path"}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(drawing)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # noqa: S704 - drawn above from numbers
