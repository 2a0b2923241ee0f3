// What the page does beyond being read: tables sort, trials are filtered, points say which trial they are of.
"use strict";
const UNITS = {K: 1e3, M: 1e6, B: 1e9, T: 1e12, P: 1e15, E: 1e18};

function valueOf(cell) { // 24.7K, 1,465 and 2.35 as numbers, all else as text; blanks last
  const [whole, number, unit] = cell.textContent.replaceAll(",", "").match(/^(-?[\d.]+(?:e[+-]?\d+)?)([KMBTPE]?)$/) || [];
  return whole === undefined ? cell.textContent || "\uffff" : Number(number) * (UNITS[unit] || 1);
}

for (const head of document.querySelectorAll("main thead th")) {
  const table = head.closest("table"), column = [...head.parentNode.children].indexOf(head);
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const falls = head.ariaSort === "ascending" ? -1 : 1;
    table.querySelectorAll("th").forEach(each => { each.ariaSort = null; });
    head.ariaSort = falls < 0 ? "descending" : "ascending";
    const body = table.tBodies[0];
    body.append(...[...body.rows].map(row => [valueOf(row.cells[column]), row]).sort(([a], [b]) =>
      falls * (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1)).map(pair => pair[1]));
  };
}

const pointsOf = trial => document.querySelectorAll(`figure a[*|href="#${trial}"]`);

for (const trials of document.querySelectorAll("details.trials")) {
  const filter = Object.assign(document.createElement("input"),
    {type: "search", placeholder: "filter, such as: small seed=0", ariaLabel: "filter the trials"});
  trials.querySelector(".wide").before(filter);
  const heads = [...trials.querySelectorAll("th")].map(head => head.textContent.trim());
  filter.oninput = () => { // a word is a value, or NAME=VALUE; other trials leave the table, and fade in the figures
    const words = filter.value.split(/\s+/).filter(Boolean);
    for (const row of trials.querySelectorAll("tbody tr")) {
      const cells = [...row.cells].map((cell, i) => [cell.textContent, `${heads[i]}=${cell.textContent}`]);
      const shown = words.every(word => cells.some(([text, named]) => named === word || text.startsWith(word)));
      row.hidden = !shown;
      pointsOf(row.id).forEach(each => each.classList.toggle("faded", !shown));
    }
  };
}

const tip = Object.assign(document.createElement("div"), {id: "tip", hidden: true});
document.body.append(tip);
for (const link of document.querySelectorAll("figure a")) {
  const row = document.getElementById(link.getAttribute("xlink:href").slice(1));
  if (!row) continue;
  const heads = [...row.closest("table").querySelectorAll("th")].map(head => head.textContent.trim());
  link.addEventListener("pointermove", event => {
    tip.textContent = [...row.cells].map((cell, i) => `${heads[i]}: ${cell.textContent}`).join("\n");
    tip.hidden = false;
    tip.style.left = `${Math.min(event.pageX + 12, document.documentElement.clientWidth - tip.offsetWidth)}px`;
    tip.style.top = `${event.pageY + 12}px`;
    pointsOf(row.id).forEach(each => each.classList.add("same"));
  });
  link.addEventListener("pointerleave", () => {
    tip.hidden = true;
    pointsOf(row.id).forEach(each => each.classList.remove("same"));
  });
  link.addEventListener("click", () => { row.closest("details").open = true; });
}

for (const svg of document.querySelectorAll("main figure > svg")) { // a part that a mouse is drawn over is enlarged
  const whole = svg.getAttribute("viewBox"), ratio = svg.viewBox.baseVal.height / svg.viewBox.baseVal.width;
  const at = event => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  let from = null;
  svg.addEventListener("mousedown", event => { from = at(event); event.preventDefault(); });
  svg.addEventListener("dragstart", event => event.preventDefault());
  svg.addEventListener("mouseup", event => {
    if (!from) return;
    const to = at(event), wide = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y) / ratio);
    if (wide > 10) {
      const [x, y] = [(from.x + to.x) / 2 - wide / 2, (from.y + to.y) / 2 - wide * ratio / 2];
      svg.setAttribute("viewBox", [x, y, wide, wide * ratio].join(" "));
    }
    from = null;
  });
  svg.addEventListener("dblclick", () => svg.setAttribute("viewBox", whole));
}
document.querySelector("header p.soft")?.append(" Drag over a part of a figure to enlarge it; a double click shows all.");
