// The explorer of hard pixels: draws frames, labels and maps on canvases from the pictures in the page.

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
  const tiles = { a: make("div", { class: "tiles" }), b: make("div", { class: "tiles" }) };
  const heads = { a: make("h3"), b: make("h3") };
  const classes = make("div", { class: "legend", role: "group", "aria-label": "only pixels of one class" });
  root.append(
    make("p", { class: "note" }, `${data.order} Left and right arrows or Page Up and Page Down change the frame.`),
    make("div", { class: "stage" },
      make("div", { class: "main" }, main, caption, readout),
      make("div", { class: "controls" },
        make("div", { class: "walk wide" }, back, picks.frame, on),
        labelled("hardness map, of run A", picks.map, "wide"),
        make("label", { class: "wide" }, words.share, share),
        labelled("run A", picks.a), labelled("run B", picks.b),
        labelled("only pixels of", picks.of), labelled("order of frames", picks.sort),
        make("label", { class: "wide" }, words.opacity, opacity))),
    classes, heads.a, tiles.a, heads.b, tiles.b);
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
    options(picks.frame, order.map((i, n) => `${n + 1} of ${order.length}: ${name(i)}, mIoU ${percent(data.frames[i].runs[A()].miou)}`));
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
    return make("div", {}, `${number(about.low)} to ${number(about.high)}`, bar);
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

  const draw = () => {
    drawMain();
    shown.views.forEach((view, k) => {
      const side = "ab"[k], score = shown.frame.runs[view.run];
      heads[side].textContent = `${"AB"[k]}: ${data.runs[view.run].label}, mIoU of this frame ${percent(score.miou)}`;
      const own = [
        ...(k ? [] : [tile("image", rgb), tile("truth", (i) => ofClass(shown.label[i]))]),
        tile("prediction", (i) => ofClass(view.prediction[i])),
        tile(`error, ${percent(score.wrong)}`, failing(view)),
        ...data.runs[view.run].maps.map((about, m) => (k && about.name === "true" ? "" // of the data, not of a run
          : tile(about.title, (i) => heat(view.maps[m][i]), ramp(about)))),
      ];
      tiles[side].replaceChildren(...own);
    });
    drawClasses();
    heads.b.hidden = tiles.b.hidden = shown.views.length < 2;
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
