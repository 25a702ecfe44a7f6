// Tables that sort, differences of confusion matrices, and the explorer of hard pixels.
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

// --- Confusion matrices ----------------------------------------------------------------------------------------

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
  const name = (cell, more) => {
    const [row, table] = [cell.parentNode, cell.closest("table")];
    const predicted = table.tHead.rows[0].cells[cell.cellIndex].textContent;
    cell.title = `${row.cells[0].textContent} predicted as ${predicted}: ${Number(cell.dataset.n).toLocaleString("en")} pixels${more}`;
  };
  const show = () => {
    const table = all[Number(a.value)].querySelector("table").cloneNode(true);
    holder.replaceChildren(table);
    table.querySelectorAll("td.cell").forEach((cell) => name(cell, ""));
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
      name(cell, `, against ${theirs[i][j].toLocaleString("en")}: ${apart.toFixed(2)} points`);
    }));
  };
  matrices.before(make("div", { class: "pick" }, labelled("row", a), labelled("minus", b)), holder);
  matrices.hidden = true;
  [a, b].forEach((select) => select.addEventListener("change", show));
  show();
}

// --- The explorer: draws frames, labels and maps on canvases from the pictures in the page ----------------------

const bytes = (hex) => Uint8Array.from(hex.match(/../g) || [], (pair) => parseInt(pair, 16));

const pixels = async (uri) => {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
};

const plane = (data) => data.filter((_, i) => i % 4 === 0);

// The hardest share of the pixels of an 8-bit map (0: no value): the lowest value that belongs to them, and how many
// there are. Never more than asked for, unless all of the hardest have one value.
const hardest = (map, share) => {
  const counts = new Array(256).fill(0);
  for (const value of map) counts[value] += 1;
  const total = map.length - counts[0];
  let [level, taken] = [256, 0];
  while (share > 0 && level > 1 && (taken === 0 || taken + counts[level - 1] <= share * total)) {
    level -= 1;
    taken += counts[level];
  }
  return { level, taken, total };
};

const explore = (root) => {
  const data = JSON.parse(root.querySelector("script").textContent);
  const colors = bytes(data.colors);
  const VOID = 255, DARK = [24, 24, 24], HARD = [255, 60, 20];
  const select = (names) => options(make("select"), names);
  const percent = (value) => (value === null ? "none" : `${(100 * value).toFixed(1)} %`);

  const picks = {
    frame: make("select"),
    sort: select(["worst first", "best first", "by name", "A loses most against B", "A gains most on B"]),
    a: select(data.runs.map((run) => run.label)),
    b: select(["none", ...data.runs.map((run) => run.label)]),
    map: make("select"),
    of: select(["all classes", ...data.classes]),
  };
  const share = make("input", { type: "range", min: "0", max: "50", step: "0.5", value: "10", "aria-label": "hardest pixels" });
  const opacity = make("input", { type: "range", min: "0", max: "100", step: "5", value: "75", "aria-label": "opacity of the marks" });
  const [back, on] = ["previous frame", "next frame"].map((name, i) =>
    make("button", { type: "button", "aria-label": name, class: i ? "next" : "previous" }, i ? "\u2192" : "\u2190"));
  const words = { share: document.createTextNode(""), opacity: document.createTextNode("") };
  const main = make("canvas", {
    tabindex: "0", role: "img",
    "aria-label": "frame with the hardest pixels marked; arrow keys move the pixel that is read out, with Shift by ten",
  });
  const caption = make("p", { class: "note", "aria-live": "polite" });
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  const once = make("div", { class: "contents" });
  const stage = make("div", { class: "stage" });
  const kinds = make("div", { class: "kinds" });
  const classes = make("div", { class: "legend filter", role: "group", "aria-label": "only pixels of one class" });
  root.append(
    make("p", { class: "note" }, `${data.order} Left and right arrows or Page Up and Page Down change the frame.`),
    stage, kinds);
  stage.append(make("div", { class: "main" }, main, caption, readout), once, make("div", { class: "controls" },
    make("div", { class: "walk wide" }, back, picks.frame, on),
    labelled("run A", picks.a, "wide"), labelled("run B", picks.b, "wide"),
    labelled("hardness map, of run A", picks.map, "wide"),
    make("label", { class: "wide" }, words.share, share), make("label", { class: "wide" }, words.opacity, opacity),
    labelled("only pixels of", picks.of), labelled("order of frames", picks.sort)), classes);
  picks.frame.setAttribute("aria-label", "frame");

  let order = [], shown = null, cursor = null, request = 0;
  const A = () => Number(picks.a.value), B = () => Number(picks.b.value) - 1;
  const frame = () => data.frames[order[Number(picks.frame.value)]];
  const kept = () => Number(picks.of.value) - 1; // -1: all classes

  const arrange = (stay) => {
    const current = stay && order.length ? order[Number(picks.frame.value)] : null;
    const score = (i, run) => (data.frames[i].runs[run].miou === null ? Infinity : data.frames[i].runs[run].miou);
    const apart = (i) => (B() < 0 ? 0 : score(i, A()) - score(i, B()));
    const keys = [(i) => score(i, A()), (i) => -score(i, A()), () => 0, apart, (i) => -apart(i)];
    const key = keys[Number(picks.sort.value)];
    const name = (i) => data.frames[i].name;
    order = data.frames.map((_, i) => i);
    order.sort((i, j) => key(i) - key(j) || name(i).localeCompare(name(j), "en", { numeric: true }));
    options(picks.frame, order.map((i, n) => `${n + 1} of ${order.length}: ${name(i)}, ${percent(data.frames[i].runs[A()].miou)}`));
    picks.frame.value = String(current === null ? 0 : order.indexOf(current));
  };

  const mapsOfA = () => {
    const wanted = picks.map.selectedIndex < 0 ? "" : picks.map.selectedOptions[0].textContent;
    const titles = data.runs[A()].maps.map((map) => map.title);
    const loss = data.runs[A()].maps.findIndex((map) => map.name === "loss"); // of every run
    options(picks.map, titles);
    picks.map.value = String(titles.includes(wanted) ? titles.indexOf(wanted) : Math.max(0, loss));
  };

  const load = async () => {
    const mine = ++request;
    const f = frame();
    const sides = [A(), ...(B() < 0 ? [] : [B()])];
    const [image, label, ...views] = await Promise.all([
      pixels(f.image), pixels(f.label).then(plane),
      ...sides.map(async (run) => ({
        run,
        prediction: plane(await pixels(f.runs[run].prediction)),
        maps: (await Promise.all(f.runs[run].maps.map(pixels))).map(plane),
      })),
    ]);
    if (mine !== request) return;
    if (!shown || shown.frame.width !== f.width || shown.frame.height !== f.height) cursor = null;
    shown = { frame: f, image, label, views };
    draw();
  };

  const paint = (canvas, color) => {
    const { frame: f, label } = shown;
    canvas.width = f.width;
    canvas.height = f.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const picture = context.createImageData(f.width, f.height);
    const only = kept();
    for (let i = 0; i < label.length; i++) {
      const [r, g, b] = color(i);
      const faint = only >= 0 && label[i] !== only ? 0.28 : 1;
      picture.data.set([faint * r, faint * g, faint * b, 255], 4 * i);
    }
    context.putImageData(picture, 0, 0);
  };

  const ofClass = (c) => (c === VOID || c >= data.palette.length ? DARK : data.palette[c]);
  const rgb = (i) => [shown.image[4 * i], shown.image[4 * i + 1], shown.image[4 * i + 2]];
  const heat = (value) => {
    if (value === 0) return DARK;
    const at = 3 * Math.round((255 * (value - 1)) / 254);
    return [colors[at], colors[at + 1], colors[at + 2]];
  };
  const failing = (view) => (i) => {
    if (shown.label[i] === VOID) return DARK;
    const [r, g, b] = rgb(i);
    if (view.prediction[i] !== shown.label[i]) return [230, 30, 40];
    const grey = 40 + 0.7 * (0.299 * r + 0.587 * g + 0.114 * b);
    return [grey, grey, grey];
  };
  const number = (value) => Number(value.toPrecision(3)).toString();
  const decoded = (about, value) => about.low + ((value - 1) / 254) * (about.high - about.low);

  const tile = (title, color, scale) => {
    const canvas = make("canvas", { role: "img", "aria-label": title });
    paint(canvas, color);
    canvas.addEventListener("pointermove", (event) => point(event, canvas));
    return make("figure", {}, canvas, make("figcaption", {}, title, ...(scale ? [scale] : [])));
  };

  const ramp = (about) => {
    const bar = make("div", { class: "scale", "aria-hidden": "true" });
    const stops = [0, 64, 128, 192, 255].map((i) => `rgb(${colors[3 * i]},${colors[3 * i + 1]},${colors[3 * i + 2]})`);
    bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    return make("div", {}, `${Math.abs(about.low) < about.high / 1000 ? 0 : number(about.low)} to ${number(about.high)}`, bar);
  };

  const drawMain = () => {
    const map = shown.views[0].maps[Number(picks.map.value)];
    const about = data.runs[A()].maps[Number(picks.map.value)];
    const { level, taken, total } = hardest(map, Number(share.value) / 100);
    const alpha = Number(opacity.value) / 100, only = kept();
    paint(main, (i) => {
      const base = rgb(i);
      if (map[i] < level || (only >= 0 && shown.label[i] !== only)) return base;
      return base.map((value, k) => (1 - alpha) * value + alpha * HARD[k]);
    });
    const tally = { hard: 0, hardWrong: 0, all: 0, wrong: 0 };
    shown.label.forEach((truth, i) => {
      if (truth === VOID || map[i] === 0 || (only >= 0 && truth !== only)) return;
      const wrong = Number(shown.views[0].prediction[i] !== truth), hard = Number(map[i] >= level);
      tally.all += 1;
      tally.wrong += wrong;
      tally.hard += hard;
      tally.hardWrong += hard * wrong;
    });
    words.share.data = `hardest pixels: ${share.value} %`;
    words.opacity.data = `opacity of the marks: ${opacity.value} %`;
    share.setAttribute("aria-valuetext", `${share.value} percent`);
    const whose = only < 0 ? "" : ` of ${data.classes[only]}`;
    const marked = total && taken
      ? `Marked: the ${((100 * taken) / total).toFixed(1)} % with ${about.title} of ${number(decoded(about, level))} or more. `
      : "Nothing is marked. ";
    const rate = (n, of) => (of ? `${((100 * n) / of).toFixed(1)} %` : "none");
    caption.textContent = tally.all
      ? `${marked}Wrong${whose}: ${rate(tally.hardWrong, tally.hard)} of the marked pixels, ${rate(tally.wrong, tally.all)} of all.`
      : `${marked}No pixel${whose} in this frame.`;
    crosshair();
  };

  const crosshair = () => {
    if (!cursor) {
      readout.textContent = "Point at a pixel to read it.";
      return;
    }
    const { frame: f, label, views } = shown;
    const i = cursor.y * f.width + cursor.x;
    const name = (c) => (c === VOID || c >= data.classes.length ? "void" : data.classes[c]);
    const swatch = (c) => {
      const mark = make("span", { class: "swatch", "aria-hidden": "true" });
      mark.style.background = `rgb(${ofClass(c).join(",")})`;
      return mark;
    };
    const parts = [`(${cursor.x}, ${cursor.y}) truth `, swatch(label[i]), ` ${name(label[i])}`];
    views.forEach((view, k) => {
      parts.push(`; ${"AB"[k]}: `, swatch(view.prediction[i]), ` ${name(view.prediction[i])}`);
      data.runs[view.run].maps.forEach((about, m) => {
        if (k && about.name === "true") return;
        const value = view.maps[m][i];
        parts.push(`, ${about.title} ${value === 0 ? "none" : number(decoded(about, value))}`);
      });
    });
    readout.replaceChildren(...parts);
    const context = main.getContext("2d");
    const arm = Math.max(3, f.width / 60);
    context.strokeStyle = "#fff";
    context.lineWidth = Math.max(1, f.width / 300);
    context.strokeRect(cursor.x - arm / 2 + 0.5, cursor.y - arm / 2 + 0.5, arm, arm);
  };

  const point = (event, canvas) => {
    if (!shown) return;
    const box = canvas.getBoundingClientRect();
    const { width, height } = shown.frame;
    const place = (value, size, end) => Math.max(0, Math.min(end - 1, Math.floor((value / size) * end)));
    cursor = { x: place(event.clientX - box.left, box.width, width), y: place(event.clientY - box.top, box.height, height) };
    drawMain();
  };

  // The classes of this frame in their colours; a press leaves only the pixels of one.
  const drawClasses = () => {
    const present = [...new Set(shown.label)].filter((c) => c < data.classes.length).sort((x, y) => x - y);
    const focused = present.findIndex((_, i) => classes.children[i] === document.activeElement);
    classes.replaceChildren(...present.map((c) => {
      const mark = make("span", { class: "swatch", "aria-hidden": "true" });
      mark.style.background = `rgb(${ofClass(c).join(",")})`;
      const button = make("button", { type: "button", "aria-pressed": String(kept() === c) }, mark, ` ${data.classes[c]}`);
      button.addEventListener("click", () => {
        picks.of.value = String(kept() === c ? 0 : c + 1);
        draw();
      });
      return button;
    }));
    classes.classList.toggle("free", kept() < 0);
    if (focused >= 0) classes.children[focused].focus();
  };

  // A column for each kind of picture: A's in one row, B's below it.
  const drawKinds = () => {
    const maps = shown.views.map((view) => data.runs[view.run].maps.filter((map) => map.name !== "true"));
    const every = [...new Set(maps.flat().map((map) => map.name))];
    const inAll = (name) => maps.every((own) => own.some((map) => map.name === name));
    const names = [...every.filter(inAll), ...every.filter((name) => !inAll(name))];
    const title = (name) => maps.flat().find((map) => map.name === name).title;
    const pictures = shown.views.flatMap((view, k) => {
      const score = shown.frame.runs[view.run], about = data.runs[view.run].maps;
      const own = [
        tile("prediction", (i) => ofClass(view.prediction[i])),
        tile(`error, ${percent(score.wrong)}`, failing(view)),
        ...names.map((name) => {
          const m = about.findIndex((map) => map.name === name);
          return m < 0 ? make("figure", { class: "none" }, `${"AB"[k]} has no ${title(name)}`)
            : tile(about[m].title, (i) => heat(view.maps[m][i]), ramp(about[m]));
        }),
      ];
      own.forEach((figure, place) => {
        figure.classList.add("ab"[k]);
        figure.style.setProperty("--place", place + 1);
      });
      return [make("h3", { class: "ab"[k] }, `${"AB"[k]}: ${data.runs[view.run].label}, mIoU of this frame ${percent(score.miou)}`), ...own];
    });
    kinds.replaceChildren(...pictures);
    kinds.style.setProperty("--kinds", names.length + 2);
    kinds.classList.toggle("alone", shown.views.length < 2);
  };

  const draw = () => {
    drawMain();
    const about = data.runs[A()].maps, m = about.findIndex((map) => map.name === "true"); // of the data, not of a run
    const tiles = [tile("truth", (i) => ofClass(shown.label[i])),
      ...(m < 0 ? [] : [tile(about[m].title, (i) => heat(shown.views[0].maps[m][i]), ramp(about[m]))])];
    tiles.forEach((figure) => figure.classList.add("once"));
    once.replaceChildren(...tiles);
    stage.style.setProperty("--once", tiles.length + 1);
    drawKinds();
    drawClasses();
    root.dataset.frame = shown.frame.name; // what is drawn now
  };

  const go = (step) => {
    const last = order.length - 1;
    const to = Math.max(0, Math.min(last, Number(picks.frame.value) + step));
    if (to === Number(picks.frame.value)) return;
    picks.frame.value = String(to);
    load();
  };

  back.addEventListener("click", () => go(-1));
  on.addEventListener("click", () => go(1));
  picks.frame.addEventListener("change", load);
  picks.sort.addEventListener("change", () => { arrange(false); load(); });
  picks.a.addEventListener("change", () => { mapsOfA(); arrange(true); load(); });
  picks.b.addEventListener("change", () => { arrange(true); load(); });
  picks.map.addEventListener("change", drawMain);
  picks.of.addEventListener("change", draw);
  for (const slider of [share, opacity]) slider.addEventListener("input", () => shown && drawMain());
  main.addEventListener("pointermove", (event) => point(event, main));
  main.addEventListener("pointerdown", (event) => point(event, main));
  main.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowUp: [0, -1] }[event.key];
    if (!step || !shown) return;
    event.preventDefault();
    event.stopPropagation();
    const by = event.shiftKey ? 10 : 1, { width, height } = shown.frame;
    const from = cursor || { x: width >> 1, y: height >> 1 };
    cursor = {
      x: Math.max(0, Math.min(width - 1, from.x + by * step[0])),
      y: Math.max(0, Math.min(height - 1, from.y + by * step[1])),
    };
    drawMain();
  });
  root.addEventListener("keydown", (event) => {
    const own = event.target.matches("select, input");
    const arrows = own ? {} : { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 };
    const pages = event.target.matches("input") ? {} : { PageDown: 1, PageUp: -1 };
    const step = { ...arrows, ...pages }[event.key];
    if (!step) return;
    event.preventDefault();
    go(step);
  });

  const common = ["true", "loss", "entropy", "uncertainty"];
  const own = data.runs.findIndex((run, i) => i > 0 && run.maps.some((map) => !common.includes(map.name)));
  picks.b.value = String(own > 0 ? own + 1 : data.runs.length > 1 ? 2 : 0);
  mapsOfA();
  arrange(false);
  return load();
};

for (const root of document.querySelectorAll(".explorer")) {
  explore(root).catch((error) => root.append(make("p", { class: "lacking" }, `The explorer failed: ${error.message}`)));
}
