"""How the page looks, beyond what all pages share, and what a script adds to it: tables that can be sorted."""

from __future__ import annotations

from stochcl.downstream import svg

STYLE = (
    svg.STYLE
    + """\
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); margin: 1rem 0; }
.tiles div { background: var(--card); border-radius: .75rem; padding: .75rem 1rem; }
.tiles b { display: block; font-size: 1.9rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles span { display: block; color: var(--soft); font-size: .9rem; line-height: 1.35; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: .5rem 0; border-block: 1px solid var(--line); }
a { color: var(--accent); }
nav a { padding: .25rem 0; }
section { scroll-margin-top: 1rem; }
.notice { border-left: .25rem solid var(--accent); background: var(--card); padding: .5rem .75rem; }
figure.plot { max-width: 40rem; margin: .75rem 0; padding: .75rem; }
.bytes td:last-child, .bytes th:last-child { text-align: left; }
.bytes td:nth-child(5) { min-width: 7rem; text-align: left; }
.sortable th { white-space: normal; min-width: 4.5rem; vertical-align: bottom; }
.bar { display: inline-block; height: .9rem; background: var(--accent); border-radius: .2rem;
  vertical-align: middle; }
.sides { display: grid; gap: .5rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.strip { display: grid; gap: .25rem; grid-template-columns: repeat(8, minmax(0, 1fr)); max-width: 30rem;
  margin: .25rem 0 .6rem; }
.strip img, .strip .blank { width: 100%; height: auto; aspect-ratio: 1; border-radius: .2rem; display: block; }
.flip { display: grid; gap: 1rem; grid-template-columns: clamp(5rem, 22vw, 8rem) minmax(0, 1fr); align-items: start; }
.flip .strip { grid-template-columns: repeat(6, minmax(0, 1fr)); max-width: 22rem; }
.maps { --pen: 10; display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
details { margin: .75rem 0; }
summary { cursor: pointer; padding: .25rem 0; color: var(--accent); }
details .wide { max-height: 32rem; overflow: auto; }
.sortable thead { position: sticky; top: 0; background: var(--paper); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
"""
)

SCRIPT = """\
document.querySelectorAll("table.sortable").forEach(table => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => {
    const text = row.cells[i].textContent.replaceAll(",", ""), found = parseFloat(text);
    return isNaN(found) ? -Infinity : found;
  };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => (value(a, i) - value(b, i)) * (down ? -1 : 1));
      body.append(...rows);
    });
  });
});
"""
