// Tables that sort, charts that tell their values, legends that switch lines, differences of confusion matrices.
"use strict";

const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === undefined) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
};

const labelled = (text, control, kind = "") => {
  control.setAttribute("aria-label", text); // else the name would have the choices in it
  return make("label", { class: kind }, text, control);
};

const options = (select, names) => {
  select.replaceChildren(...names.map((name, i) => make("option", { value: String(i) }, name)));
  return select;
};

// --- Tables ----------------------------------------------------------------------------------------------------

const sortable = (table) => {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const body = table.tBodies[0];
  const first = [...body.rows];
  const value = (row, i) => (row.cells[i] ? row.cells[i].textContent.trim() : "");
  const number = (text) => {
    const found = text.replace(/,(?=\d{3})/g, "").replace("\u2212", "-").match(/^[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? parseFloat(found[0]) : NaN;
  };
  const sort = (i, direction) => {
    const rows = [...first];
    const key = new Map(rows.map((row) => [row, number(value(row, i))]));
    const numeric = rows.some((row) => !Number.isNaN(key.get(row)));
    rows.sort((a, b) => {
      if (!numeric) return direction * value(a, i).localeCompare(value(b, i), "en", { numeric: true });
      const [x, y] = [key.get(a), key.get(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // without a value: last
      return direction * (x - y);
    });
    body.append(...rows);
  };
  heads.forEach((head, i) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      sort(i, falling ? -1 : 1);
    });
  });
};

for (const table of document.querySelectorAll(".sortable table")) sortable(table);
for (const wide of document.querySelectorAll(".scroll")) wide.tabIndex = 0; // the arrow keys scroll it

// --- Charts ----------------------------------------------------------------------------------------------------

for (const chart of document.querySelectorAll("svg.chart")) {
  const tip = make("p", { class: "tip", "aria-live": "polite" });
  chart.after(tip);
  const marks = [...chart.querySelectorAll("[data-tip]")];
  let now = null;
  const show = (mark) => {
    if (now) now.classList.remove("seen");
    now = mark;
    if (mark) mark.classList.add("seen");
    tip.textContent = mark ? mark.dataset.tip : "";
  };
  const visible = () => marks.filter((mark) => !mark.hasAttribute("hidden"));
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let [best, least] = [null, 40];
    for (const mark of visible()) {
      const away = Math.hypot(mark.dataset.x - x, mark.dataset.y - y);
      if (away < least) [best, least] = [mark, away];
    }
    show(best);
  });
  chart.addEventListener("pointerleave", () => show(null));
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const shown = visible();
    if (!step || !shown.length) return;
    event.preventDefault();
    const place = shown.indexOf(now);
    show(shown[place < 0 ? (step > 0 ? 0 : shown.length - 1) : (place + step + shown.length) % shown.length]);
  });
}

for (const button of document.querySelectorAll("[data-toggle]")) {
  const scope = button.closest("figure.own, section");
  const pressed = (kind, of) => {
    const found = [...scope.querySelectorAll(`[data-toggle=${kind}]`)].find((b) => b.dataset.of === of);
    return !found || found.getAttribute("aria-pressed") === "true";
  };
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    for (const part of scope.querySelectorAll("svg.chart [data-row]")) {
      const on = pressed("row", part.dataset.row) && (!part.dataset.run || pressed("run", part.dataset.run));
      part.toggleAttribute("hidden", !on);
    }
  });
}

for (const charts of document.querySelectorAll(".choose")) {
  const figures = [...charts.children];
  const select = options(make("select"), figures.map((figure) => figure.dataset.choice));
  const show = () => figures.forEach((figure, i) => figure.toggleAttribute("hidden", i !== Number(select.value)));
  select.addEventListener("change", show);
  charts.before(make("div", { class: "pick" }, labelled(charts.dataset.label, select)));
  show();
}

// --- Confusion matrices ----------------------------------------------------------------------------------------

const cellTips = (holder, text) => {
  const tip = make("p", { class: "tip", "aria-live": "polite" });
  holder.after(tip);
  let place = null;
  const cells = () => [...holder.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const show = (cell) => {
    holder.querySelectorAll(".seen").forEach((other) => other.classList.remove("seen"));
    tip.textContent = cell ? text(cell) : "";
    if (cell) cell.classList.add("seen");
  };
  holder.addEventListener("pointerover", (event) => show(event.target.closest("td.cell")));
  holder.addEventListener("pointerleave", () => show(null));
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = cells();
    const within = (value, end) => Math.max(0, Math.min(end, value));
    place = place ? [within(place[0] + step[0], all.length - 1), within(place[1] + step[1], all[0].length - 1)] : [0, 0];
    const cell = all[place[0]][place[1]];
    show(cell);
    cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
};

for (const matrices of document.querySelectorAll(".matrices")) {
  const all = [...matrices.children];
  const labels = all.map((one) => one.dataset.label);
  const [a, b] = [options(make("select"), labels), options(make("select"), ["nothing", ...labels])];
  const holder = make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "confusion matrix" });
  const counts = (table) => [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1).map((c) => Number(c.dataset.n)));
  const names = (table) => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const shares = (rows) => rows.map((row) => {
    const total = row.reduce((sum, n) => sum + n, 0);
    return row.map((n) => (total ? n / total : 0));
  });
  const show = () => {
    const table = all[Number(a.value)].querySelector("table").cloneNode(true);
    holder.replaceChildren(table);
    if (b.value === "0") return;
    const other = all[Number(b.value) - 1].querySelector("table");
    if (names(other).join("\n") !== names(table).join("\n")) {
      holder.replaceChildren(make("p", { class: "lacking" }, "These two have different classes."));
      return;
    }
    const [own, its] = [shares(counts(table)), shares(counts(other))];
    const theirs = counts(other);
    [...table.tBodies[0].rows].forEach((row, i) => [...row.cells].slice(1).forEach((cell, j) => {
      const apart = 100 * (own[i][j] - its[i][j]);
      cell.textContent = Math.abs(apart) >= 0.5 ? `${apart > 0 ? "+" : "\u2212"}${Math.abs(apart).toFixed(0)}` : "";
      cell.className = `cell${apart < 0 ? " less" : ""}${Math.abs(apart) > 22 ? " strong" : ""}`;
      cell.style.setProperty("--v", Math.min(1, Math.abs(apart) / 40).toFixed(2));
      cell.dataset.other = theirs[i][j];
      cell.dataset.apart = apart.toFixed(2);
    }));
  };
  matrices.before(make("div", { class: "pick" }, labelled("row", a), labelled("minus", b)), holder);
  cellTips(holder, (cell) => {
    const row = cell.parentNode;
    const table = row.closest("table");
    const predicted = table.tHead.rows[0].cells[cell.cellIndex].textContent;
    const pixels = Number(cell.dataset.n).toLocaleString("en");
    const against = cell.dataset.other === undefined ? ""
      : `, against ${Number(cell.dataset.other).toLocaleString("en")}: ${cell.dataset.apart} points`;
    return `${row.cells[0].textContent} predicted as ${predicted}: ${pixels} pixels${against}`;
  });
  matrices.hidden = true;
  [a, b].forEach((select) => select.addEventListener("change", show));
  show();
}
