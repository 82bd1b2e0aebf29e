"""The colours of pictures, as CSS rules for light and dark. Plain rules, no variables: converters to PDF and PNG read them too."""

from __future__ import annotations

from collections.abc import Mapping

FONTS = "Helvetica, Arial, 'Liberation Sans', 'Nimbus Sans', sans-serif"

# kind -> (fill, stroke) in light, (fill, stroke) in dark
PALETTE: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "plain": (("#f6f7f9", "#b4bac4"), ("#23272e", "#565d68")),
    "weighted": (("#e6effb", "#6b9bd8"), ("#1b2b40", "#4d7fbe")),
    "norm": (("#e5f4f1", "#62ab9c"), ("#17302c", "#468d7f")),
    "activation": (("#fdf4dc", "#d0ac4e"), ("#332b15", "#a1843a")),
    "attention": (("#fbe8ee", "#d67f9b"), ("#3a1d28", "#b3617e")),
    "recurrent": (("#fbe9e2", "#d88d6b"), ("#3a231a", "#b56f4f")),
    "conv": (("#eae9fb", "#8a84d6"), ("#262344", "#6c66b8")),
    "join": (("#e9f5e6", "#74b066"), ("#1e321a", "#5a924d")),
    "fork": (("#74b066", "#74b066"), ("#5a924d", "#5a924d")),
    "filter": (("#f1e6fa", "#a273cf"), ("#2e1f3d", "#8a5db6")),
    "stitch": (("#ffead1", "#e8871e"), ("#3f2a10", "#d67c1b")),
    "scope": (("#ffffff", "#8b94a3"), ("#1c2026", "#7a8392")),
    "input": (("#eef1f5", "#5f6b7c"), ("#2a303a", "#8d98a9")),
    "output": (("#eef1f5", "#5f6b7c"), ("#2a303a", "#8d98a9")),
}
# the file that declares a brick -> its colour; other bricks are plain, or weighted where they have weights
FAMILIES = {
    "norm": "norm", "activation": "activation", "attention": "attention", "positions": "attention", "conv": "conv", "pooling": "conv",
    "recurrent": "recurrent", "mlstm": "recurrent", "ssm": "recurrent", "rwkv": "recurrent", "linear_attention": "recurrent",
}
MARKS = ("#d33f6a", "#2f7ed8", "#1f9d6b", "#c26a00", "#8d52c7", "#0e8fa8", "#a35a2a", "#6f7d00")
INKS = {  # class -> light, dark
    "t": ("#1b1f24", "#e8ebef"),
    "m": ("#5c6673", "#a5aebb"),
    "note": ("#5c6673", "#a5aebb"),
    "shape": ("#77808c", "#8f98a5"),
    "tag": ("#5a6472", "#b6bfcb"),
    "count": ("#c2410c", "#f59e66"),
}
LINES = {"edge": ("#99a1ad", "#6d7683"), "router": ("#a273cf", "#a77fd0"), "cluster": ("#ccd2da", "#434a55")}
CLUSTERS = (("#f7f8fa", "#171b21"), ("#eef1f4", "#1f252d"))  # by depth: even, odd; light, dark


def css(theme: str = "auto") -> str:
    """The rules. `theme`: `light`, `dark`, or `auto` for what the reader's system prefers."""
    base = (
        f".gi text{{font-family:{FONTS};font-size:11px}}.gi .t{{font-weight:bold}}.gi .note,.gi .mark{{font-size:9px}}"
        ".gi .shape,.gi .tag{font-size:8px}.gi .count{font-weight:bold}.gi .head{font-size:13px;font-weight:bold}"
        ".gi .box,.gi .cluster{stroke-width:1}.gi .edge path{fill:none;stroke-width:1}.gi .router path{stroke-dasharray:4 2.5}"
        ".gi .again{stroke-dasharray:4 2.5}.gi .stitch .box{stroke-width:1.4}.gi .tagbox{fill:none;stroke-width:.7}"
    )
    if theme != "auto":
        return base + _rules(theme == "dark")
    return f"{base}{_rules(False)}@media (prefers-color-scheme:dark){{{_rules(True)}}}"


def _rules(dark: bool) -> str:
    pick = int(dark)
    out = [f".gi .{kind} .box{{fill:{pair[pick][0]};stroke:{pair[pick][1]}}}" for kind, pair in PALETTE.items()]
    out += [f".gi .{kind}{{fill:{pair[pick]}}}" for kind, pair in INKS.items()]
    for kind in ("edge", "router"):
        out.append(f".gi .{kind} path{{stroke:{LINES[kind][pick]}}}.gi .{kind} polygon{{fill:{LINES[kind][pick]}}}")
    out += [f".gi .c{i}{{fill:{pair[pick]}}}" for i, pair in enumerate(CLUSTERS)]
    out.append(f".gi .cluster{{stroke:{LINES['cluster'][pick]}}}")
    out.append(f".gi .head{{fill:{INKS['t'][pick]}}}.gi .tagbox{{stroke:{INKS['tag'][pick]}}}")
    out += [f".gi .k{i}{{fill:{colour}}}" for i, colour in enumerate(MARKS)] if not dark else []
    return "".join(out)
