"""Write the lists of supported architectures in docs/encoders.md, from the table that loading and tests read.

python scripts/encoders_page.py
"""

from pathlib import Path

from pipeline.encoders import REFUSED, SPEECH, TEXT

PAGE = Path(__file__).parents[1] / "docs/encoders.md"
BEGIN, END = "<!-- written by scripts/encoders_page.py -->\n", "<!-- end -->\n"


def main() -> None:
    """Bring the page up to date."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(content: str) -> str:
    """The page with its lists as they should be."""
    before, _, rest = content.partition(BEGIN)
    return f"{before}{BEGIN}{lists()}{END}{rest.partition(END)[2]}"


def lists() -> str:
    """Which architectures are supported and how, by their `model_type` in config.json."""
    causal = [name for name, architecture in TEXT.items() if architecture.causal]
    alone = [name for name, architecture in TEXT.items() if architecture.alone]
    fixed = [name for name, architecture in TEXT.items() if not (architecture.learns or architecture.causal)]
    rows = {
        "speech, in padded batches": SPEECH,
        "text, in padded batches": [name for name in TEXT if name not in (*alone, *causal)],
        "text, one at a time": alone,
        "language models, in padded batches": causal,
        "text, encoded but not fine-tuned": [*fixed, "language models"],
    }
    supported = "".join(
        f"| {how} | {', '.join(name if ' ' in name else f'`{name}`' for name in names)} |\n"
        for how, names in rows.items()
    )
    reasons: dict[str, list[str]] = {}
    for name, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    refused = "".join(f"| {', '.join(names)} | {reason} |\n" for reason, names in reasons.items())
    return f"| | architectures |\n|---|---|\n{supported}\n| refused | because |\n|---|---|\n{refused}"


if __name__ == "__main__":
    main()
