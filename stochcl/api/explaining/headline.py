"""What frames the page: headline figures, where the bytes go, and how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochcl.api.explaining.view import number, paragraph, percent, section, size
from stochcl.downstream import pages
from stochcl.messages import escape_name as printable
from stochcl.messages import plural as counted

if TYPE_CHECKING:
    from stochcl.api.explaining.view import View


_PARTS = {
    "codes": "the latents themselves, entropy-coded",
    "tables": "what decodes them, stored in the file",
    "names": "names and labels",
    "index": "where blocks lie, and checksums",
    "header": "which model made it, and how",
    "uncertainty": "how certain the encoder was of each code",
}


def headline(view: View) -> list[str]:
    """Return the figures that come first, and sentences about them."""
    facts, found, material = view.material.facts, view.findings, view.material
    unit = facts.unit
    tiles = [(number(facts.bits_per_image), f"bits per {unit}, {size(facts.bytes)} in all")]
    compared = {"source": "what was compressed", "features": "float32 features"}
    for key, what in compared.items():
        if facts.reduction[key]:
            total = {"source": facts.source_bytes, "features": facts.feature_bytes}[key]
            tiles.append((f"{facts.reduction[key]:,.1f}\u00d7", f"smaller than {what} ({size(total)})"))
    tiles.append((f"{facts.latents:,}", f"latents; {_asleep(view)}"))
    if found.probe is not None and material.labels is not None:
        probe = found.probe
        low, high = probe.interval
        if probe.classes:
            said = f"accuracy of a linear probe of {material.labels.called} "
            said += f"(95 %: {100 * low:.1f} to {100 * high:.1f})"
            tiles.append((percent(probe.score, 1), f"{said}; guessing gives {percent(probe.baseline, 1)}"))
        else:
            said = f"R2 of a linear probe of {material.labels.called} (95 %: {low:.2f} to {high:.2f})"
            tiles.append((f"{probe.score:.2f}", f"{said}; guessing the mean gives 0"))
    cards = "".join(f"<div><b>{pages.escape(a)}</b><span>{pages.escape(b)}</span></div>" for a, b in tiles)
    return [f'<div class="tiles">{cards}</div>']


def _asleep(view: View) -> str:
    still = int(((view.findings.counts > 0).sum(axis=1) == 1).sum())
    return "all of them change" if not still else f"{still:,} never change"


def where_bytes_go(view: View) -> str:
    """Return the archive's parts."""
    facts = view.material.facts
    whole = facts.bytes
    rows = []
    for name, part in facts.parts.items():
        share = part / whole
        bar = pages.Html(f'<span class="bar" style="width:{max(share * 100, 0.3):.1f}%"></span>')
        per = part * 8 / facts.images
        rows.append((name, f"{part:,}", f"{per:,.1f}", percent(share, 1), bar, _PARTS.get(name, "")))
    columns = ("part", "bytes", f"bits per {facts.unit}", "share", "", "what it is")
    largest = max(facts.parts, key=facts.parts.__getitem__)
    text = f"Of {whole:,} bytes, {percent(facts.parts[largest] / whole, 1)} are {largest}."
    parts = [paragraph(text), pages.table(columns, rows, kind="bytes")]
    if facts.external_bytes:
        parts.append(paragraph(
            f"To be read, it also needs {facts.external_bytes:,} bytes of decoding tables, which are not in the "
            "file: they come with the model, once for all archives.", soft=True,
        ))  # fmt: skip
    if facts.skipped:
        skipped = counted(len(facts.skipped), facts.unit)
        parts.append(paragraph(f"{skipped} could not be read when it was made, and is not in it.", soft=True))
    return section("bytes", "Where the bytes go", parts)


def how_it_was_made(view: View, *, seed: int, version: str) -> str:
    """Return what figures are, and of what."""
    facts, material, found = view.material.facts, view.material, view.findings
    sampled = len(material.rows)
    what = (
        f"all {sampled:,}" if sampled == facts.images else f"{sampled:,} of {facts.images:,}, in runs spread evenly,"
    )
    lines = [
        f"Bytes, and certainty, are of the whole archive. Figures of latents are of {what} {facts.unit}s.",
        "Bits alone: the entropy of a latent's values. Bits given those before: under the file's main entropy model.",
    ]
    if found.information is not None:
        lines.append(
            "What a latent says about the label is mutual information, less what small samples seem to say; "
            "numbers are cut at their deciles."
        )
    if found.weights.any():
        lines.append(
            "Share of vectors: the part of their variance that goes with the latent. Latents share it, so that these "
            "do not add up."
        )
    if found.probe is not None:
        lines.append(
            f"The probe is {found.probe.estimator} on {'symbols' if found.probe.symbols else 'decoded vectors'}, "
            f"trained on {found.probe.trained:,} {facts.unit}s and scored on {len(found.probe.held):,} others; "
            "`stochcl evaluate` takes all of them."
        )
    lines.append(
        f"Model {printable(facts.model)} ({facts.model_sha256[:12]}), {facts.precision}; seed {seed}; "
        f"stochcl {version}, `stochcl report`."
    )
    notes = [*found.notes, *lines]
    return section("made", "How this was made", [
        "<ul>", *(f"<li>{pages.escape(line)}</li>" for line in notes), "</ul>"
    ])  # fmt: skip
