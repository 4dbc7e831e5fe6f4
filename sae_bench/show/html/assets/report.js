"use strict";
(async () => {
  const read = async (id) => {
    const node = document.getElementById(id);
    if (!node || node.type === "application/json") return node && JSON.parse(node.textContent);
    const packed = Uint8Array.from(atob(node.textContent), (each) => each.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  };
  const [figures, table] = await Promise.all(["figures", "table"].map(read));
  const root = document.documentElement, drawn = new Set();
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // Pictures: drawn when they come near the window, in the theme's colours.
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const palette = () => {
    const found = { ink: css("--ink"), faint: css("--faint"), bad: css("--bad"), fill: css("--fill") };
    for (let i = 0; i < 8; i++) found[i] = css(`--c${i}`);
    return found;
  };
  const COLOURS = new Set(["color", "fillcolor"]);
  const themed = (tree, colours, key = "") => {
    if (Array.isArray(tree)) return tree.map((each) => themed(each, colours, key));
    if (tree && typeof tree === "object")
      return Object.fromEntries(Object.entries(tree).map(([k, each]) => [k, themed(each, colours, k)]));
    return COLOURS.has(key) && typeof tree === "string" && tree[0] === "$" ? colours[tree.slice(1)] : tree;
  };
  const longest = (spec) => Math.max(0, ...spec.data.map((trace) => (trace.name || "").length));
  const layout = (spec, colours, narrow) => {
    const lines = { gridcolor: css("--rule"), linecolor: css("--rule"), zerolinecolor: css("--faint"), automargin: true };
    const given = themed(spec.layout || {}, colours);
    return Object.assign({}, given, {
      autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--ink"), size: 12, family: "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" },
      margin: { l: 48, r: 12, t: 12, b: 40 }, hovermode: "closest",
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: narrow ? 10 : 11 },
        ...(narrow && longest(spec) < 17 ? { entrywidthmode: "fraction", entrywidth: 0.5 } : {}) },
      hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--rule"), font: { color: css("--ink") } },
      xaxis: Object.assign({}, lines, given.xaxis), yaxis: Object.assign({}, lines, given.yaxis),
    });
  };
  const sized = new ResizeObserver((entries) => {
    for (const { target } of entries)
      if (target.offsetParent && Math.abs(target.offsetWidth - target._fullLayout.width) > 1) Plotly.Plots.resize(target);
  });
  const draw = (node) => {
    const spec = figures[node.dataset.figure];
    if (!spec || !node.offsetParent) return;
    const colours = palette();
    Plotly.react(node, themed(spec.data, colours), layout(spec, colours, node.offsetWidth < 420),
      { displaylogo: false, displayModeBar: false });
    drawn.add(node);
    sized.observe(node);
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
  }, { rootMargin: "400px" });
  all(".plot").forEach((node) => near.observe(node));
  const redraw = () => drawn.forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // Print shows everything, on white.
  let opened = [];
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    opened = all("details.property:not([open])");
    opened.forEach((each) => { each.open = true; });
    all(".plot").forEach(draw);
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    opened.forEach((each) => { each.open = false; });
    redraw();
  });

  // A link to a folded section opens it.
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    target.scrollIntoView();
    const focus = target.querySelector("summary") || target;
    focus.focus({ preventScroll: true });
  };
  addEventListener("hashchange", follow);
  all("a[href^='#']").forEach((each) => each.addEventListener("click", () => {
    if (each.getAttribute("href") === location.hash) follow();
  }));
  if (location.hash) follow();

  // The table of all metrics.
  const MOST = 500;
  if (table) {
    const body = document.querySelector("#metrics tbody"), heads = all("#metrics th");
    const words = document.getElementById("filter"), verdict = document.getElementById("verdict");
    const status = document.getElementById("shown");
    let column = -1, up = true;
    const key = (row, at) => row[at] && typeof row[at] === "object" ? row[at][0] : row[at];
    const compare = (a, b) => {
      const x = key(a, column), y = key(b, column), none = (each) => each === null || each === "";
      if (none(x) || none(y)) return none(x) - none(y);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en");
      return up ? order : -order;
    };
    const cell = (row, at) => {
      const td = document.createElement("td"), value = row[at], shown = value && typeof value === "object" ? value[1] : value;
      if (table.columns[at] === "metric") {
        const link = document.createElement("a");
        link.href = "#" + encodeURIComponent(`${row[0]}--${row[table.columns.length]}`);
        link.textContent = shown;
        td.append(link);
      } else if (table.columns[at] === "verdict" && value) {
        const word = document.createElement("span");
        word.className = "v v-" + value.toLowerCase();
        word.textContent = value;
        td.append(word);
      } else td.textContent = shown ?? "";
      if (Array.isArray(value)) td.className = "n";
      return td;
    };
    const show = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean), only = verdict.value;
      const at = table.columns.indexOf("verdict");
      let rows = table.rows.filter((row) => {
        const text = `${row[0]} ${row[1]} ${row[at]}`.toLowerCase();
        const judged = row[table.columns.length + 1];
        return wanted.every((word) => text.includes(word))
          && (only === "" || (only === "judged" ? judged : String(row[at]).toLowerCase() === only));
      });
      if (column >= 0) rows = rows.slice().sort(compare);
      status.textContent = rows.length > MOST ? `${MOST} of ${rows.length} rows shown; filter to see fewer`
        : `${rows.length} of ${table.rows.length} rows`;
      body.replaceChildren(...rows.slice(0, MOST).map((row) => {
        const tr = document.createElement("tr");
        tr.append(...table.columns.map((_, at) => cell(row, at)));
        return tr;
      }));
    };
    heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
      up = column === at ? !up : true;
      column = at;
      heads.forEach((each, row) => each.setAttribute("aria-sort", row !== at ? "none" : up ? "ascending" : "descending"));
      show();
    }));
    words.addEventListener("input", show);
    verdict.addEventListener("change", show);
    show();
  }

  // Keys: j k over properties, n p over those that need attention, g the grid, / the filter.
  const step = (selector, forward) => {
    const stops = all(selector), line = innerHeight / 4, top = (each) => each.getBoundingClientRect().top;
    const next = forward ? stops.find((each) => top(each) > line + 1) : stops.reverse().find((each) => top(each) < line - 60);
    if (!next) return;
    if (selector.includes("alarm")) next.open = true;
    scrollTo({ top: scrollY + top(next) - line, behavior: "instant" });
    next.querySelector("summary").focus({ preventScroll: true });
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const actions = {
      j: () => step("details.property", true), k: () => step("details.property", false),
      n: () => step("details.property.alarm", true), p: () => step("details.property.alarm", false),
      g: () => { location.hash = "grid"; }, "/": () => document.getElementById("filter")?.focus(),
    };
    if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
  });
})();
