"""Draws docs/figures/slots.svg: the three slots of a model, and the kinds that fill them, as the configs know them."""

from pathlib import Path

from enma_fast.config import CodecConfig, ContextConfig, DecoderConfig
from enma_fast.utils.kinds import Slot

WIDTH, BOX, GAP, TOP = 960, 200, 92, 60
# Title, what it does, and its kinds.
SLOTS = (
    ("codec", ("observed frames", "to tokens"), CodecConfig),
    ("context", ("tokens of past frames", "to what is known"), ContextConfig),
    ("decoder", ("context and noise", "to the next tokens"), DecoderConfig),
)
LABEL = "The three slots of a model: a codec, a context and a decoder, with the kinds that fill each."


def names(slot: type[Slot]) -> list[str]:
    """The kinds of a slot that the package has."""
    return [name for name, kind in slot.kinds.items() if kind.__module__.startswith("enma_fast.")]


def text(x: float, y: float, words: str, *, size: int = 15, weight: str = "normal", colour: str = "#222") -> str:
    """A line of text around x."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="middle">{words}</text>'
    )


def arrow(path: str) -> str:
    """A line with a tip."""
    return f'<path d="{path}" fill="none" stroke="#555" stroke-width="1.5" marker-end="url(#tip)"/>'


def drawing() -> str:
    """The whole picture."""
    most = max(len(names(kind)) for *_, kind in SLOTS)
    height = TOP + 96 + 22 * most + 62
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img" '
        f'aria-label="{LABEL}">',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#555"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    left = [GAP + i * (BOX + GAP) for i in range(len(SLOTS))]
    bottom = TOP + 96 + 22 * most
    for x, (title, does, kind) in zip(left, SLOTS, strict=True):
        middle = x + BOX / 2
        parts.append(
            f'<rect x="{x}" y="{TOP}" width="{BOX}" height="{bottom - TOP}" rx="6" fill="#eaf2fa" stroke="#2878b8"/>'
        )
        parts.append(text(middle, TOP + 26, title, size=18, weight="bold"))
        parts += [text(middle, TOP + 48 + 18 * i, line, colour="#555") for i, line in enumerate(does)]
        parts += [text(middle, TOP + 100 + 22 * i, name) for i, name in enumerate(names(kind))]
    flow = TOP + 40
    parts.append(text(GAP / 2 - 4, flow - 10, "frames"))
    parts.append(arrow(f"M8 {flow}H{GAP - 4}"))
    for x, words in zip(left, ("tokens", "condition"), strict=False):
        parts.append(text(x + BOX + GAP / 2, flow - 10, words))
        parts.append(arrow(f"M{x + BOX + 4} {flow}h{GAP - 8}"))
    # Known inputs and noise from above.
    for x, words in ((left[1], "another trajectory, known inputs"), (left[2], "noise of the member")):
        parts.append(text(x + BOX / 2, 24, words, colour="#555"))
        parts.append(arrow(f"M{x + BOX / 2:g} 32V{TOP - 4}"))
    # What was decided is read next, and in the end decoded.
    back = bottom + 28
    parts.append(arrow(f"M{left[2] + BOX / 2:g} {bottom}V{back}H{left[1] + BOX / 2:g}V{bottom + 4}"))
    parts.append(text((left[1] + left[2] + BOX) / 2, back + 20, "the next frame", colour="#555"))
    parts.append(arrow(f"M{left[1] + BOX / 2:g} {back}H{left[0] + BOX / 2:g}V{bottom + 4}"))
    parts.append(text((left[0] + left[1] + BOX) / 2, back + 20, "all frames, at the end", colour="#555"))
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawing(), encoding="utf-8")
