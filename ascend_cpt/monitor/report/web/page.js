"use strict";
// Draws the charts in #data with plotly, and gets newer ones from the server if there is one.
const darkness = matchMedia("(prefers-color-scheme: dark)");
const THEMES = {
  light: { ink: "#1c2024", soft: "#60666e", line: "#dfe3e8", page: "#fff", paper: "#fff",
    alarm: "#c62828", good: "#15803d", runs: ["#2563c9", "#c2410c", "#15803d", "#8b35c4", "#a16207", "#0e7490",
      "#be185d", "#4d7c0f", "#57534e", "#1e40af"] },
  dark: { ink: "#e6e8ea", soft: "#9aa3ad", line: "#353c44", page: "#14171a", paper: "#1b1f24",
    alarm: "#ff7b72", good: "#6fd08c", runs: ["#6ea8fe", "#ff9d5c", "#6fd08c", "#cf9bff", "#e3c04f", "#5fd4e8",
      "#ff8fc0", "#b4dc5a", "#c3b8ae", "#93a8ff"] },
};
const DASHES = ["solid", "dash", "dot", "dashdot"];
const AXES = { steps: "Steps", tokens: "Tokens", time: "Time" };
const SCALES = { auto: "Auto", linear: "Linear", log: "Log" };
const FORMS = {
  plain: { hover: ".5~g", axis: { tickformat: "~g" } },
  count: { hover: ".4~s", axis: { exponentformat: "B" } },
  percent: { hover: ".3~p", axis: { tickformat: "~p" } },
  exponent: { hover: ".3~e", axis: { tickformat: "~e" } },
};
const MARKS = {
  rise: { symbol: "triangle-up-open", color: "alarm", meaning: "beyond its limit" },
  recovery: { symbol: "triangle-down-open", color: "good", meaning: "within its limit again" },
  skip: { symbol: "x-thin-open", color: "alarm", meaning: "skipped update" },
  restart: { symbol: "diamond-open", color: "ink", meaning: "restart" },
};
const PARTS = { steps: "#3f9b5c", data: "#d9a521", lost: "#c8453b", compiling: "#5b86c9", starting: "#8d6cc0",
  waiting: "#c77db0", validation: "#3aa3a8", saving: "#8c6d4f", ending: "#b0b6bd", down: "#6b727a" };
const SCORES = [[0, "#f0938a"], [0.5, "#f5e08d"], [1, "#8fd0a3"]];
// By default, plotly shows a button that uploads the chart to its developers' server.
const CONFIG = { responsive: true, displaylogo: false, showTips: false, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

const element = id => document.getElementById(id);
// Plotly reads tags and entities in its texts.
const escape = text => String(text).replace(/[&<>]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
const state = { axis: "steps", scale: "auto", hidden: new Set(), range: null };
const cards = new Map();
let data, theme, observer;

function decode(values) {
  if (Array.isArray(values)) return values;
  const bytes = Uint8Array.from(atob(values.bdata), c => c.charCodeAt(0)).buffer;
  return new { i4: Int32Array, f4: Float32Array, f8: Float64Array }[values.dtype](bytes);
}
function color(run) { return theme.runs[run % theme.runs.length]; }
function dash(run) { return DASHES[Math.floor(run / theme.runs.length) % DASHES.length]; }
function unit() {
  if (state.axis !== "time") return { title: { steps: "step", tokens: "tokens" }[state.axis], scale: 1 };
  const longest = Math.max(...data.runs.map(run => run.seconds.at(-1)));
  const [scale, name] = longest < 120 ? [1, "s"] : longest < 7200 ? [60, "min"] : [3600, "h"];
  return { title: `training time (${name})`, scale };
}
// Positions of ascending steps of a run on the current axis, from the run's table.
function place(run, steps) {
  if (state.axis === "steps") return steps;
  const table = data.runs[run], from = table.steps, to = table[state.axis === "tokens" ? "tokens" : "seconds"];
  const last = from.length - 1, scale = unit().scale;
  let i = 1;
  return Array.from(steps, step => {
    while (i < last && from[i] < step) i++;
    while (i > 1 && from[i - 1] > step) i--;
    return (to[i - 1] + (to[i] - to[i - 1]) * (step - from[i - 1]) / (from[i] - from[i - 1])) / scale;
  });
}
const shown = item => !state.hidden.has(item.run);
// The numbers of the runs that are shown. With more than FEW, a chart leaves out what would cover the curves.
const FEW = 3;
const visibleRuns = () => [...data.runs.keys()].filter(run => !state.hidden.has(run));
const isLog = chart => state.scale === "log" || (state.scale === "auto" && Boolean(chart.log));

function drawLines(chart, isNarrow) {
  const form = FORMS[chart.form], lines = chart.lines.filter(shown), several = data.runs.length > 1;
  const isCrowded = visibleRuns().length > (isNarrow ? 1 : FEW);
  return lines.map(line => {
    const label = line.raw ? "each step" : line.note ? `mean of ${line.note}` : "value";
    const run = shorten(data.runs[line.run].name, isNarrow ? 20 : 40);
    const name = !several ? label : isCrowded || !line.raw ? run : `${run}, ${label}`;
    return { type: "scatter", mode: line.dots ? "lines+markers" : "lines", name: escape(name),
      x: place(line.run, line.x), y: line.y, opacity: !line.raw ? 1 : isCrowded ? 0.2 : 0.35, connectgaps: false,
      meta: { run: line.run },
      line: { color: color(line.run), width: line.raw ? 1 : 2, dash: line.raw ? "solid" : dash(line.run) },
      marker: { color: color(line.run), size: line.x.length > 60 ? 4 : 7 },
      ...(line.raw && isCrowded ? { hoverinfo: "skip" } : { hovertemplate: `%{y:${form.hover}}` }) };
  });
}
function drawMarks(chart, isNarrow) {
  const traces = [], isAlone = visibleRuns().length === 1;
  for (const [kind, look] of Object.entries(MARKS)) for (const run of data.runs.keys()) {
    const marks = (chart.marks || []).filter(mark => mark.kind === kind && mark.run === run && shown(mark))
      .sort((a, b) => a.x - b.x);
    if (!marks.length) continue;
    const name = data.runs.length > 1 ? shorten(data.runs[run].name, isNarrow ? 12 : 40) : "";
    const ink = isAlone ? theme[look.color] : color(run);
    const describe = mark => `${shorten(mark.text, isNarrow ? 22 : 80)} (step ${mark.x})`;
    traces.push({ type: "scatter", mode: "markers", name: escape(name), meta: { run },
      x: place(run, marks.map(mark => mark.x)), y: marks.map(mark => mark.y),
      text: marks.map(mark => escape(describe(mark))), hovertemplate: name ? "%{text}" : "%{text}<extra></extra>",
      marker: { symbol: look.symbol, size: isAlone ? 12 : 10, color: ink, line: { width: 2, color: ink } } });
  }
  return traces;
}
function drawShapes(chart, width) {
  const shapes = [];
  const ends = chart.lines.flatMap(line => Array.from(place(line.run, line.x.slice(-1))));
  const right = state.range ? state.range[1] - state.range[0] : Math.max(0, ...ends);
  (chart.phases || []).forEach((phase, index) => {
    const [x0, x1] = place(0, [phase.first_step, phase.stop_step]);
    const room = Math.floor((x1 - x0) / (right || 1) * (width - 70) / 7.2);
    const name = phase.name.length > room ? phase.name.slice(0, Math.max(0, room - 1)) + "…" : phase.name;
    shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0, x1, layer: "below", line: { width: 0 },
      fillcolor: `rgba(125, 145, 175, ${index % 2 ? 0.05 : 0.16})`,
      label: room > 2 ? { text: escape(name), textposition: "top left", yanchor: "bottom", padding: 2,
        font: { size: 11, color: theme.soft } } : {} });
  });
  const visible = visibleRuns();
  if (visible.length === 1) for (const restart of data.runs[visible[0]].restarts) {
    const [x] = place(visible[0], [restart]);
    shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, layer: "below",
      line: { color: theme.soft, width: 1, dash: "dot" } });
  }
  const levels = (chart.levels || []).filter(level => visible.length <= FEW && shown(level) && level.y !== null);
  for (const level of levels) {
    const ink = level.alarm ? theme.alarm : color(level.run);
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: level.y, y1: level.y,
      line: { color: ink, width: 1.2, dash: "dash" },
      label: visible.length === 1 ? { text: escape(level.text), textposition: "end", yanchor: "bottom", padding: 2,
        font: { size: 11, color: ink } } : {} });
  }
  return shapes;
}
function axisStyle(title) {
  return { gridcolor: theme.line, linecolor: theme.line, zeroline: false, automargin: true, tickfont: { size: 11 },
    title: { text: title, font: { size: 12 }, standoff: 4 } };
}
function baseLayout() {
  return { autosize: true, paper_bgcolor: theme.page, plot_bgcolor: theme.page, showlegend: false,
    font: { color: theme.ink, family: "system-ui, sans-serif", size: 12 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.soft, activecolor: theme.ink },
    hoverlabel: { bgcolor: theme.paper, bordercolor: theme.line, namelength: -1,
      font: { color: theme.ink, size: visibleRuns().length > 8 ? 11 : 12 } } };
}
function curveFigure(chart, card) {
  const axis = unit(), width = card.clientWidth, isNarrow = width < 500;
  const xaxis = { ...axisStyle(axis.title), exponentformat: "B", showspikes: true, spikemode: "across",
    spikethickness: 1,
    spikedash: "solid", spikecolor: theme.soft, ...(state.range ? { range: state.range } : { autorange: true }),
    uirevision: JSON.stringify([state.axis, state.range]), hoverformat: state.axis === "steps" ? ",d" : ".5~g",
    unifiedhovertitle: { text: state.axis === "time" ? `%{x} ${axis.title.slice(15, -1)}` : `${axis.title} %{x}` } };
  const yaxis = { ...axisStyle(), ...FORMS[chart.form].axis, type: isLog(chart) ? "log" : "linear",
    uirevision: state.scale };
  // On a touch screen, a drag scrolls the page.
  const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  const layout = { ...baseLayout(), height: card.classList.contains("wide") && width > 700 ? 380 : 270, xaxis, yaxis,
    margin: { l: 48, r: 14, t: (chart.phases || []).length ? 24 : 10, b: 40 }, hovermode: "x unified", dragmode,
    shapes: drawShapes(chart, width) };
  return [[...drawLines(chart, isNarrow), ...drawMarks(chart, isNarrow)], layout];
}
function barFigure(chart, card) {
  const isNarrow = card.clientWidth < 600, several = data.runs.length > 1;
  const rows = chart.bars[0].runs.map((run, i) => i).filter(i => !state.hidden.has(chart.bars[0].runs[i]));
  const pick = list => rows.map(i => list[i]);
  const traces = chart.bars.map(part => ({ type: "bar", orientation: "h", name: part.label, x: pick(part.shares),
    y: rows.map((_, row) => row), customdata: pick(part.texts), marker: { color: PARTS[part.kind] },
    text: pick(part.shares.map(share => share > 0.08 ? `${(share * 100).toFixed(0)}%` : "")), textposition: "inside",
    insidetextanchor: "middle", textangle: 0,
    hovertemplate: `${part.label} %{x:.1%} (%{customdata})<extra></extra>` }));
  const below = isNarrow ? 20 * Math.ceil(chart.bars.length / 2) + 14 : 34;
  const layout = { ...baseLayout(), barmode: "stack", hovermode: "closest", dragmode: false, showlegend: true,
    height: 30 * Math.max(1, rows.length) + below + 12, bargap: 0.25, margin: { l: 6, r: 6, t: 4, b: below },
    legend: { orientation: "h", xref: "container", x: 0, yref: "container", y: 0, yanchor: "bottom", maxheight: 1,
      traceorder: "normal", font: { size: 11.5 } },
    xaxis: { range: [0, 1], visible: false, fixedrange: true },
    yaxis: { ...axisStyle(), autorange: "reversed", fixedrange: true, showticklabels: several, showgrid: false,
      tickvals: rows.map((_, row) => row),
      ticktext: pick(chart.bars[0].runs.map(run => escape(shorten(data.runs[run].name, isNarrow ? 18 : 40)))) } };
  return [traces, layout];
}
function heatFigure(chart) {
  const trace = { type: "heatmap", x: chart.lengths, y: chart.depths, z: chart.scores, zmin: 0, zmax: 1, xgap: 2,
    ygap: 2, colorscale: SCORES, showscale: false, hoverongaps: false, texttemplate: "%{z:.2f}",
    textfont: { color: "#1c2024" }, hovertemplate: "%{x} tokens, depth %{y}: %{z:.3f}<extra></extra>" };
  const axis = title => ({ ...axisStyle(title), type: "category", showgrid: false });
  const layout = { ...baseLayout(), height: 90 + 30 * chart.depths.length, margin: { l: 48, r: 14, t: 6, b: 40 },
    dragmode: false, xaxis: axis("tokens"), yaxis: { ...axis("depth"), autorange: "reversed" } };
  return [[trace], layout];
}
// The ends of names differ more often than their beginnings.
function shorten(name, room) {
  return name.length > room ? `${name.slice(0, room / 2 - 2)}…${name.slice(1 - room / 2)}` : name;
}

function draw(card) {
  const [chart, plot] = [card.chart, card.querySelector(".plot")];
  const [traces, layout] = chart.bars ? barFigure(chart, card) : chart.scores ? heatFigure(chart)
    : curveFigure(chart, card);
  card.isOld = false;
  Plotly.react(plot, traces, layout, CONFIG);
  if (chart.lines && !card.isWatched) {
    card.isWatched = true;
    plot.on("plotly_relayout", change => {
      if (change["xaxis.autorange"]) zoom(null);
      else if ("xaxis.range[0]" in change) zoom([change["xaxis.range[0]"], change["xaxis.range[1]"]]);
    });
  }
}
// All curves show the same part of the runs.
function zoom(range) { state.range = range; redraw(); }
// A chart is drawn when it comes into view, so that a page with many curves opens quickly.
function redraw() {
  theme = THEMES[darkness.matches ? "dark" : "light"];
  for (const card of cards.values()) { card.isOld = true; if (card.isNear) draw(card); }
  for (const key of document.querySelectorAll(".key")) {
    const run = Number(key.dataset.run);
    key.style.borderTopColor = color(run);
    key.style.borderTopStyle = { solid: "solid", dot: "dotted" }[dash(run)] || "dashed";
  }
}
function describeMarks(chart) {
  const kinds = new Set((chart.marks || []).map(mark => mark.kind)), note = (chart.lines || []).find(line => line.note);
  const signs = { rise: "△", recovery: "▽", skip: "×", restart: "◇" };
  const parts = note ? [`thin: each step; thick: mean of ${note.note}`] : [];
  for (const [kind, look] of Object.entries(MARKS)) if (kinds.has(kind)) parts.push(`${signs[kind]} ${look.meaning}`);
  return parts.join(" · ");
}
function makeCard(chart) {
  const card = document.createElement("figure");
  card.className = "chart";
  card.append(document.createElement("h3"), document.createElement("p"));
  const plot = document.createElement("div");
  plot.className = "plot";
  plot.style.minHeight = chart.bars ? "150px" : chart.scores ? "120px" : "270px";
  card.append(plot);
  return card;
}
function addCards(charts, parent, group) {
  charts.forEach((chart, index) => {
    const key = `${group}: ${chart.title}`, card = cards.get(key) || makeCard(chart);
    for (const line of chart.lines || []) { line.x = decode(line.x); line.y = decode(line.y); }
    card.chart = chart;
    card.classList.toggle("wide", group === "shared" && (index === 0 || Boolean(chart.bars)));
    card.querySelector("h3").textContent = chart.title;
    card.querySelector("p").textContent = describeMarks(chart);
    if (card.parentNode !== parent) { parent.append(card); observer.observe(card); }
    cards.set(key, card);
  });
}
function fillBar() {
  const bar = element("bar"), legend = document.createElement("div");
  legend.className = "legend";
  const group = (names, key, label) => {
    const box = document.createElement("div");
    box.className = "group"; box.role = "group"; box.ariaLabel = label;
    for (const [value, name] of Object.entries(names)) {
      const button = document.createElement("button");
      button.textContent = name; button.id = `${key}-${value}`; button.title = `${label}: ${name.toLowerCase()}`;
      button.setAttribute("aria-pressed", String(state[key] === value));
      button.onclick = () => {
        if (key === "axis" && state.axis !== value) state.range = null;
        state[key] = value; fillBar(); redraw();
      };
      box.append(button);
    }
    return box;
  };
  if (data.runs.length > 1) data.runs.forEach((run, index) => {
    const button = document.createElement("button"), key = document.createElement("i");
    key.className = "key"; key.dataset.run = index;
    button.append(key, run.name);
    button.title = `${run.name} (double click: only this run)`;
    button.setAttribute("aria-pressed", String(!state.hidden.has(index)));
    button.onclick = () => {
      if (!state.hidden.delete(index)) state.hidden.add(index);
      button.setAttribute("aria-pressed", String(!state.hidden.has(index))); redraw();
    };
    button.ondblclick = () => {
      const others = data.runs.map((_, other) => other).filter(other => other !== index);
      state.hidden = new Set(others.every(other => state.hidden.has(other)) ? [] : others);
      fillBar(); redraw();
    };
    legend.append(button);
  });
  bar.replaceChildren(group(AXES, "axis", "horizontal axis"), group(SCALES, "scale", "vertical scale"),
    ...(data.runs.length > 1 ? [legend] : []));
}
function show(newData) {
  data = newData;
  for (const run of data.runs) for (const name of ["steps", "tokens", "seconds"]) run[name] = decode(run[name]);
  addCards(data.charts, element("charts"), "shared");
  for (const place of document.querySelectorAll("[data-maps]"))
    addCards(data.maps.filter(map => map.run === Number(place.dataset.maps)), place, `run ${place.dataset.maps}`);
  for (const [key, card] of cards) if (!card.isConnected) {
    observer.unobserve(card); Plotly.purge(card.querySelector(".plot")); cards.delete(key);
  }
  if (data.runs.length) { fillBar(); redraw(); }
}
function announce(text, isProblem) {
  const line = element("status");
  line.textContent = text; line.hidden = !text; line.classList.toggle("problem", isProblem);
}
async function follow() {
  let wait = 2000;
  try {
    const answer = await fetch(`data?after=${encodeURIComponent(data.version)}`);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const news = answer.status === 204 ? null : await answer.json();
    if (news && news.problem) { data.version = news.version; announce(news.problem, true); }
    else if (news) {
      document.title = element("title").textContent = news.title;
      element("comparison").innerHTML = news.comparison;
      const open = [...document.querySelectorAll("details.run")].map(one => one.open);
      element("sections").innerHTML = news.sections;
      document.querySelectorAll("details.run").forEach((one, i) => { one.open = open[i] ?? one.open; });
      show(news.data);
      announce(`updated at ${new Date().toLocaleTimeString()}`, false);
    }
  } catch (error) {
    announce(`no connection to tools/report.py --serve (${error.message}); the page shows the last state`, true);
    wait = 5000;
  }
  setTimeout(follow, wait);
}
observer = new IntersectionObserver(entries => {
  for (const entry of entries) {
    entry.target.isNear = entry.isIntersecting;
    if (entry.isIntersecting && entry.target.isOld && data.runs.length) draw(entry.target);
  }
}, { rootMargin: "400px" });
darkness.addEventListener("change", redraw);
show(JSON.parse(element("data").textContent));
if (data.version) { announce(data.problem || "updates automatically", Boolean(data.problem)); follow(); }
