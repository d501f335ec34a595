"""The template for the report page: styles and script. The page loads no external resources."""

from __future__ import annotations

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #fff; --ink: #1c2024; --soft: #60666e; --line: #dfe3e8;
  --band: rgba(70, 90, 120, .09); --alarm: #c62828;
  --c0: #2563c9; --c1: #c2410c; --c2: #15803d; --c3: #8b35c4; --c4: #a16207; --c5: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1b1f24; --ink: #e6e8ea; --soft: #9aa3ad;
  --line: #353c44; --band: rgba(150, 175, 210, .12); --alarm: #ff7b72;
  --c0: #6ea8fe; --c1: #ff9d5c; --c2: #6fd08c; --c3: #cf9bff; --c4: #e3c04f; --c5: #5fd4e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1500px; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 8px; overflow-wrap: anywhere; }
.bar { display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: center; margin: 0 0 12px; }
.bar button { font: inherit; color: inherit; background: none; border: 1px solid var(--line); border-radius: 6px;
  padding: 3px 10px; cursor: pointer; }
.bar button[aria-pressed=false] { opacity: .45; text-decoration: line-through; }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  background: var(--run); }
.charts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.chart { position: relative; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 10px 4px; min-width: 0; }
.chart:first-child { grid-column: 1 / -1; }
.chart h3 { font-size: 14px; font-weight: 600; margin: 0 0 4px; overflow-wrap: anywhere; }
.chart h3 small { font-weight: 400; color: var(--soft); }
svg { display: block; width: 100%; font-size: 11.5px; }
svg text { fill: var(--soft); }
svg .halo { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.tip { position: absolute; pointer-events: none; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 8px; font-size: 12.5px; display: none; z-index: 2; max-width: 90%;
  box-shadow: 0 2px 8px rgba(0, 0, 0, .2); }
.run { border-top: 1px solid var(--line); margin-top: 20px; padding-top: 12px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 14px 3px 0; vertical-align: top; border-bottom: 1px solid var(--line); }
.facts th { font-weight: 500; color: var(--soft); white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
.tables { display: flex; flex-wrap: wrap; gap: 12px 40px; margin-top: 14px; }
.scroll { overflow-x: auto; max-width: 100%; }
.heat caption { text-align: left; padding-bottom: 4px; }
.heat td { color: #fff; text-align: center; padding: 3px 10px; }
@media (max-width: 480px) { body { padding: 10px; } .facts th { white-space: normal; } }
"""

_SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const color = run => `var(--c${run % 6})`;
const hidden = new Set();
let inTokens = false;
const escape = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
function count(v) {
  for (const [scale, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]])
    if (Math.abs(v) >= scale * 0.99999) return +(v / scale).toPrecision(4) + suffix;
  return String(+v.toPrecision(4));
}
function write(v, form) {
  if (form === "count") return count(v);
  if (form === "percent") return +(v * 100).toPrecision(3) + "%";
  if (v !== 0 && (form === "exponent" || Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5))
    return v === 0 ? "0" : v.toExponential(2).replace(/\.?0+e/, "e");
  return String(+v.toPrecision(5));
}
function ticks(low, high, number) {
  const raw = (high - low) / Math.max(1, number), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(m => m * power >= raw) * power, found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}
function logTicks(low, high) {
  const found = [], wide = Math.log10(high / low) > 3;
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++)
    for (const m of wide ? [1] : [1, 2, 5])
      if (m * 10 ** p >= low && m * 10 ** p <= high) found.push(m * 10 ** p);
  return found;
}
function place(run, step) { return inTokens ? step * data.tokens_per_step[run] : step; }
function drawPhases(chart, sx, left, right, top, bottom) {
  let out = "";
  (chart.phases || []).forEach((phase, index) => {
    const a = Math.max(left, sx(place(0, phase.first_step))), b = Math.min(right, sx(place(0, phase.stop_step)));
    if (b <= a) return;
    if (index % 2 === 0) out += `<rect x="${a}" y="${top}" width="${b - a}" height="${bottom - top}"
      fill="var(--band)"/>`;
    if (index) out += `<path d="M${a} ${top}V${bottom}" stroke="var(--soft)" stroke-dasharray="2 3"/>`;
    const room = Math.floor((b - a - 8) / 6.6);
    const name = phase.name.length > room ? phase.name.slice(0, Math.max(0, room - 1)) + "…" : phase.name;
    if (room > 2) out += `<text x="${a + 4}" y="${top + 12}">${escape(name)}</text>`;
  });
  return out;
}
function draw(card, chart) {
  const width = Math.max(240, card.clientWidth - 22), wide = width > 900, height = wide ? 320 : 230;
  // Phase names are drawn in a strip above the curves.
  const left = 58, right = width - 10, roof = 6, bottom = height - 24;
  const top = roof + ((chart.phases || []).length ? 18 : 2);
  const shown = item => !hidden.has(item.run);
  const lines = chart.lines.filter(shown), levels = (chart.levels || []).filter(shown);
  const marks = (chart.marks || []).filter(shown);
  let xLow = 0, xHigh = 0, yLow = Infinity, yHigh = -Infinity;
  for (const line of lines) {
    for (const x of line.x) xHigh = Math.max(xHigh, place(line.run, x));
    for (const y of line.y) if (y !== null && (!chart.log || y > 0)) {
      yLow = Math.min(yLow, y); yHigh = Math.max(yHigh, y);
    }
  }
  for (const level of levels) if (level.y !== null) {
    yLow = Math.min(yLow, level.y); yHigh = Math.max(yHigh, level.y);
  }
  const svg = card.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  if (yLow > yHigh) { svg.innerHTML = `<text x="${left}" y="40">no data</text>`; card.hover = null; return; }
  const log = chart.log && yLow > 0 && yHigh / yLow > 20;
  const pad = (yHigh - yLow || Math.abs(yHigh) || 1) * 0.06;
  [yLow, yHigh] = log ? [yLow / 1.15, yHigh * 1.15] : [yLow >= 0 && yLow < pad * 2 ? 0 : yLow - pad, yHigh + pad];
  const sx = x => left + (x - xLow) / (xHigh - xLow || 1) * (right - left);
  const f = log ? Math.log : v => v, sy = y => bottom - (f(y) - f(yLow)) / (f(yHigh) - f(yLow)) * (bottom - top);
  let out = drawPhases(chart, sx, left, right, roof, bottom);
  for (const y of log ? logTicks(yLow, yHigh) : ticks(yLow, yHigh, 5)) {
    out += `<path d="M${left} ${sy(y)}H${right}" stroke="var(--line)"/>
      <text x="${left - 6}" y="${sy(y) + 4}" text-anchor="end">${write(y, chart.form)}</text>`;
  }
  for (const x of ticks(xLow, xHigh, width / 85)) {
    const anchor = sx(x) > right - 16 ? "end" : "middle";
    out += `<path d="M${sx(x)} ${bottom}v4" stroke="var(--soft)"/>
      <text x="${sx(x)}" y="${bottom + 17}" text-anchor="${anchor}">${count(x)}</text>`;
  }
  for (const level of levels) {
    const ink = level.alarm ? "var(--alarm)" : color(level.run);
    out += `<path d="M${left} ${sy(level.y)}H${right}" stroke="${ink}" stroke-dasharray="6 4" opacity=".8"/>`;
    if (levels.length < 5) out += `<text class="halo" x="${right - 4}" text-anchor="end" style="fill:${ink}"
      y="${sy(level.y) + (level.alarm || sy(level.y) + 15 > bottom ? -4 : 13)}">${escape(level.text)}</text>`;
  }
  for (const line of lines) {
    let path = "", pen = "M";
    line.x.forEach((x, i) => {
      if (line.y[i] === null || log && line.y[i] <= 0) { pen = "M"; return; }
      path += `${pen}${sx(place(line.run, x)).toFixed(1)} ${sy(line.y[i]).toFixed(1)}`; pen = "L";
    });
    out += `<path d="${path}" fill="none" stroke="${color(line.run)}" stroke-linejoin="round"
      stroke-width="${line.raw ? 1 : 1.8}" opacity="${line.raw ? .35 : 1}"/>`;
    if (line.dots) line.x.forEach((x, i) => {
      if (line.y[i] !== null) out += `<circle cx="${sx(place(line.run, x))}" cy="${sy(line.y[i])}"
        r="${line.x.length > 60 ? 1.6 : 3}" fill="${color(line.run)}"/>`;
    });
  }
  for (const mark of marks) {
    const x = sx(place(mark.run, mark.x)), y = mark.y === null ? top + 8 : sy(mark.y);
    const shape = { rise: `M${x - 7} ${y + 5}h14l-7-12z`, recovery: `M${x - 7} ${y - 5}h14l-7 12z` }[mark.kind]
      || `M${x - 4} ${y - 4}l8 8m0-8l-8 8`;
    out += `<path d="${shape}" stroke="${mark.kind === "recovery" ? "var(--c2)" : "var(--alarm)"}" stroke-width="1.6"
      fill="none" pointer-events="all"><title>step ${mark.x} ${escape(mark.text)}</title></path>`;
    if (mark.kind && marks.length < 5) out += `<text class="halo" x="${Math.min(x, right - 30)}" text-anchor="middle"
      y="${y > top + 26 ? y - 12 : y + 22}">step ${mark.x}</text>`;
  }
  svg.innerHTML = out + `<path class="cross" stroke="var(--soft)"/>`;
  card.hover = { lines, left, right, top, bottom, xLow, xHigh, sx, chart };
}
function hover(card, event) {
  const h = card.hover, tip = card.querySelector(".tip"), cross = card.querySelector(".cross");
  if (!h || !cross) return;
  const box = card.querySelector("svg").getBoundingClientRect();
  const mouse = event.clientX - box.left;
  if (mouse < h.left || mouse > h.right) { leave(card); return; }
  const x = h.xLow + (mouse - h.left) / (h.right - h.left) * (h.xHigh - h.xLow);
  let text = "", at = 0;
  for (const line of h.lines) {
    let best = 0, low = 0, high = line.x.length - 1;
    while (low < high) {
      const middle = low + high >> 1;
      if (place(line.run, line.x[middle]) < x) low = middle + 1; else high = middle;
    }
    best = low && x - place(line.run, line.x[low - 1]) < place(line.run, line.x[low]) - x ? low - 1 : low;
    if (line.y[best] === null) continue;
    at = place(line.run, line.x[best]);
    text += `<div><i class="key" style="--run:${color(line.run)}"></i>${escape(data.runs[line.run])}:
      <b>${write(line.y[best], h.chart.form)}</b>${line.note ? ` (mean of ${escape(line.note)})` : ""}
      at step ${line.x[best].toLocaleString("en")}</div>`;
  }
  if (!text) { leave(card); return; }
  cross.setAttribute("d", `M${h.sx(at)} ${h.top}V${h.bottom}`);
  tip.innerHTML = text; tip.style.display = "block";
  const limit = card.clientWidth - tip.offsetWidth - 4;
  tip.style.left = Math.max(4, Math.min(mouse + 24, limit)) + "px";
  tip.style.top = "34px";
}
function leave(card) {
  card.querySelector(".tip").style.display = "none";
  const cross = card.querySelector(".cross");
  if (cross) cross.removeAttribute("d");
}
const cards = data.charts.map(chart => {
  const card = document.createElement("figure");
  card.className = "chart"; card.style.margin = 0;
  const note = chart.lines.find(line => line.note);
  card.innerHTML = `<h3>${escape(chart.title)}${note ? ` <small>thin: each step; thick: mean of
    ${note.note}</small>` : ""}</h3><svg role="img" aria-label="${escape(chart.title)}"></svg><div class="tip"></div>`;
  document.getElementById("charts").append(card);
  card.addEventListener("pointermove", event => hover(card, event));
  card.addEventListener("pointerleave", () => leave(card));
  return [card, chart];
});
function redraw() { for (const [card, chart] of cards) draw(card, chart); }
const bar = document.getElementById("bar");
if (data.runs.length > 1) data.runs.forEach((name, run) => {
  const button = document.createElement("button");
  button.innerHTML = `<i class="key" style="--run:${color(run)}"></i>${escape(name)}`;
  button.setAttribute("aria-pressed", "true");
  button.onclick = () => {
    if (hidden.has(run)) hidden.delete(run); else hidden.add(run);
    button.setAttribute("aria-pressed", String(!hidden.has(run))); redraw();
  };
  bar.append(button);
});
const axis = document.createElement("button");
axis.textContent = "Show by tokens";
axis.onclick = () => {
  inTokens = !inTokens; axis.textContent = inTokens ? "Show by steps" : "Show by tokens"; redraw();
};
bar.append(axis);
redraw();
let waiting = 0;
addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(redraw); });
"""

PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title><style>{_STYLE}</style></head><body>
<h1>@TITLE@</h1><div class="bar" id="bar"></div>
<noscript><p>The charts need JavaScript, which is disabled in this browser.</p></noscript>
<div class="charts" id="charts"></div>
@SECTIONS@
<script type="application/json" id="data">@DATA@</script><script>{_SCRIPT}</script></body></html>
"""
