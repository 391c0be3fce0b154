// The explorer's picture and hands. All mathematics comes from Python as arrays; nothing is computed here but scales,
// sums for the prediction's score, and where a pointer is. `source` hides the host: an exported file or a kernel.

const SVG = "http://www.w3.org/2000/svg";
const FLOOR = -12; // The log view's lowest power of ten.
const LADDER = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1]; // Few steps, so that the axis rests while the peak is dragged.
const WHOLE_FILM = 6; // Seconds that a film takes at speed 1.
const PATIENCE = 10_000; // Milliseconds before a silent kernel is reported.
const TOUCH = 22; // Half of 44 pixels, the smallest comfortable touch target.
const DARK = "#14181D"; // The page in the dark scheme, as in explorer.css.
let widgets = 0;

// ------------------------------------------------------------------------------------------------------- small helpers

function html(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

function dress(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else put(node, { [name]: value });
  }
  // Strings become text nodes: a label or a URL can never become an element.
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Writes only what changed: an untouched attribute costs the browser nothing.
function put(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const px = (x) => x.toFixed(1);
const range = (n) => Array.from({ length: n }, (_, i) => i);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const sentence = (name) => capital(name.replaceAll("_", " "));

function short(x) {
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "–";
  const size = Math.abs(x);
  if (size >= 1000) return Math.round(x).toLocaleString("en");
  if (size >= 100) return x.toFixed(0);
  if (size >= 10) return x.toFixed(1);
  if (size < 5e-7) return "0.00"; // Rounding of float32: an exact zero such as a KL at step 0 comes out near 1e-8.
  if (size >= 0.01) return x.toFixed(2);
  return x.toExponential(0);
}

// A count is whole, and exact runs ask without end.
const shownNumber = (about, x) => (about.name === "queries" && x < 1000 ? String(Math.round(x)) : short(x));
const power = (exponent) => (exponent === 0 ? "1" : `1e${exponent}`.replace("-", "−"));

function luminance(hex) {
  const parts = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
  const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// A colour of the style table on a dark page: black turns light, others are lightened until they stand out 4.5:1.
function onDark(hex) {
  if (luminance(hex) < 0.02) return "#F2F2F2";
  const parts = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  for (let mix = 0; mix < 1; mix += 0.05) {
    const mixed = parts.map((c) =>
      Math.round(c + (255 - c) * mix)
        .toString(16)
        .padStart(2, "0"),
    );
    if ((luminance("#" + mixed.join("")) + 0.05) / (luminance(DARK) + 0.05) >= 4.5) return "#" + mixed.join("");
  }
  return "#FFFFFF";
}

function download(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = html("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 30_000);
}

// --------------------------------------------------------------------------------------------------- films from a file

const TYPES = { int16: Int16Array, uint8: Uint8Array, int8: Int8Array, float32: Float32Array };

async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Running sums along one axis; typed arrays wrap as the differences did.
function sumAlong(values, shape, axis) {
  const inner = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  const block = shape[axis] * inner;
  for (let start = 0; start < values.length; start += block) {
    for (let i = start + inner; i < start + block; i++) values[i] += values[i - inner];
  }
}

function unpack(bytes, entry, at) {
  const count = entry.shape.reduce((a, b) => a * b, 1);
  const Type = TYPES[entry.dtype];
  if (!Type) throw new Error(`array ${entry.name} has the unknown type ${entry.dtype}`);
  const size = count * Type.BYTES_PER_ELEMENT;
  if (at + size > bytes.length) throw new Error(`array ${entry.name} ends after the data do`);
  let values;
  if (entry.dtype === "int16") {
    values = new Int16Array(count);
    for (let i = 0; i < count; i++) values[i] = bytes[at + i] | (bytes[at + count + i] << 8);
  } else {
    values = new Type(bytes.slice(at, at + size).buffer);
  }
  for (const axis of [...(entry.delta ?? [])].reverse()) sumAlong(values, entry.shape, axis);
  return { values, size, shape: entry.shape.slice(1), scale: entry.scale ?? 1 };
}

async function decode(shard, actions) {
  const bytes = await inflate(shard.data);
  const columns = {};
  let at = 0;
  for (const entry of shard.arrays) {
    if (entry.shape[0] !== actions) throw new Error(`array ${entry.name} does not have ${actions} peaks`);
    columns[entry.name] = unpack(bytes, entry, at);
    at += columns[entry.name].size;
  }
  if (at !== bytes.length) throw new Error(`${bytes.length - at} bytes are left over`);
  if (!columns.log_prob || !columns.numbers || !columns.reward) throw new Error("arrays are missing");
  return { steps: shard.steps, columns };
}

// One peak's film out of a decoded shard.
function filmAt(shard, peak, id) {
  const arrays = {};
  const shapes = {};
  for (const [name, { values, shape, scale }] of Object.entries(shard.columns)) {
    if (name.endsWith("_scale")) continue;
    const size = shape.reduce((a, b) => a * b, 1);
    const stored = values.subarray(peak * size, (peak + 1) * size);
    const out = Float32Array.from(stored);
    if (scale !== 1) for (let i = 0; i < size; i++) out[i] *= scale;
    const rows = shard.columns[`${name}_scale`];
    if (rows) {
      const row = shape.at(-1);
      for (let i = 0; i < size; i++) out[i] *= rows.values[Math.floor((peak * size + i) / row)];
    }
    if (name === "response") for (let i = 0; i < size; i++) if (out[i] === 255) out[i] = -1;
    arrays[name] = out;
    shapes[name] = shape;
  }
  return { id, want: "sampled", steps: shard.steps, arrays, shapes };
}

function fileSource({ meta, shards }) {
  const decoded = new Map();
  let films = 0;
  const entry = (scene) =>
    meta.grid.find(
      (e) => e.width === scene.width && same(e.second, scene.second) && same(e.reference, scene.reference),
    );
  const load = (index) => {
    if (!decoded.has(index)) {
      const job = decode(shards[index], meta.actions).then((shard) => {
        decoded.set(index, shard);
        return shard;
      });
      decoded.set(index, job);
    }
    return decoded.get(index);
  };
  const has = (scene) =>
    Boolean(entry(scene)) &&
    Object.keys(meta.scene).every(
      (key) => ["peak", "width", "second", "reference"].includes(key) || same(scene[key], meta.scene[key]),
    );
  return {
    meta,
    grid: meta.grid,
    has,
    ready: (scene) => has(scene) && !(decoded.get(entry(scene).shard) instanceof Promise),
    film: async (scene) => filmAt(await load(entry(scene).shard), scene.peak, ++films),
    // Ahead of need: what is not on the screen is decoded while nothing else happens, one shard a turn.
    prepare: (later) => {
      const next = range(shards.length).find((i) => !decoded.has(i));
      if (next !== undefined) later(() => load(next));
      return next !== undefined;
    },
    close: () => decoded.clear(),
  };
}

// ------------------------------------------------------------------------------------------------- films from a kernel

function parseFilm(view) {
  const bytes = new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength);
  const length = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  const film = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let at = Math.ceil((4 + length) / 4) * 4;
  const arrays = {};
  const shapes = {};
  for (const { name, shape } of film.arrays) {
    const size = 4 * shape.reduce((a, b) => a * b, 1);
    arrays[name] = new Float32Array(bytes.slice(at, at + size).buffer);
    shapes[name] = shape;
    at += size;
  }
  return { ...film, arrays, shapes };
}

// At most one request is under way and one waits, the newest: a dragging hand never builds a queue.
function liveSource(model) {
  const meta = model.get("meta");
  let last = 0;
  let current = null;
  let waiting = null;
  let timer = 0;
  let silent = false;
  const send = () => {
    current = waiting;
    waiting = null;
    if (!current) return;
    model.set("request", { id: current.id, scene: current.scene, want: current.want });
    model.save_changes();
    timer = setTimeout(() => {
      silent = true;
      source.onsilent?.("There is no answer from the kernel. It may still be compiling, or it has ended.");
    }, PATIENCE);
  };
  const finish = () => {
    clearTimeout(timer);
    if (silent) source.onsilent?.(null);
    silent = false;
    const done = current;
    send();
    return done;
  };
  const answer = () => {
    const buffer = model.get("film");
    if (!buffer || !buffer.byteLength) return;
    const film = parseFilm(buffer);
    if (current && film.id === current.id) finish().resolve(film);
  };
  const message = (content) => {
    if (content?.type !== "error" || !current || (content.id ?? current.id) !== current.id) return;
    finish().reject(Object.assign(new Error(String(content.text)), { told: true }));
  };
  model.on("change:film", answer);
  model.on("msg:custom", message);
  const source = {
    meta,
    grid: null,
    has: () => true,
    ready: () => current === null,
    film: (scene, want) =>
      new Promise((resolve, reject) => {
        waiting?.resolve(null); // Replaced before it was sent.
        waiting = { id: ++last, scene, want, resolve, reject };
        if (!current) send();
      }),
    // Asks again although the last question is still open.
    again: () => {
      if (current) finish().resolve(null);
    },
    prepare: () => false,
    close: () => {
      clearTimeout(timer);
      model.off("change:film", answer);
      model.off("msg:custom", message);
    },
  };
  return source;
}

// ------------------------------------------------------------------------------------------------ scenes and addresses

function describe(scene) {
  const second = scene.second ? `, second peak ${scene.second.peak}` : "";
  return `peak ${scene.peak}, width ${scene.width}${second}`;
}

function bounded(app, name, value, fallback, problems) {
  const { min, max } = app.limits(name);
  if (typeof value !== "number" || !Number.isFinite(value)) {
    problems.push(`${sentence(name)} is not a number; ${fallback} is shown.`);
    return fallback;
  }
  const inside = clamp(value, min, max);
  if (inside !== value) problems.push(`${sentence(name)} ${value} is outside ${min} to ${max}; ${inside} is shown.`);
  return inside;
}

function peakOf(app, value, fallback, problems) {
  const place = bounded(app, "peak", value, fallback, problems);
  if (Number.isInteger(place)) return place;
  problems.push(`Peak ${place} is not a whole action; ${Math.round(place)} is shown.`);
  return Math.round(place);
}

function secondOf(app, value, base, problems) {
  if (value === null) return null;
  if (typeof value !== "object") {
    problems.push("The second peak is not readable; it is left out.");
    return base.second ?? null;
  }
  return {
    peak: peakOf(app, value.peak, 0, problems),
    width: bounded(app, "width", value.width, base.width, problems),
    height: bounded(app, "height", value.height, base.height, problems),
  };
}

function referenceOf(app, value, base, problems) {
  const names = app.meta.references.map((r) => r.name);
  const drawn = Array.isArray(value) && value.length === app.meta.actions && value.every(Number.isFinite);
  if ((drawn && names.includes("drawn")) || (names.includes(value) && value !== "drawn")) return value;
  problems.push(`That reference is not one of ${names.join(", ")}; ${JSON.stringify(base.reference)} is shown.`);
  return base.reference;
}

// A scene that exists, and one sentence for each thing in it that had to be changed.
function valid(app, wanted) {
  const base = app.meta.scene;
  const problems = [];
  const scene = { ...base, ...wanted };
  scene.peak = peakOf(app, scene.peak, base.peak, problems);
  scene.width = bounded(app, "width", scene.width, base.width, problems);
  scene.height = bounded(app, "height", scene.height, base.height, problems);
  scene.second = secondOf(app, scene.second ?? null, base, problems);
  scene.reference = referenceOf(app, scene.reference, base, problems);
  for (const name of Object.keys(app.meta.controls ?? {})) {
    if (name in base && name !== "width" && name !== "height") {
      scene[name] = bounded(app, name, scene[name], base[name], problems);
    }
  }
  if (!app.source.has(scene)) {
    problems.push(`This page has no runs of ${describe(scene)} with those settings; the nearest that it has is shown.`);
    const { peak } = scene;
    const away = (e) => Math.abs(e.width - scene.width) + 100 * !same(e.reference, scene.reference);
    const near = app.source.grid.reduce((a, b) => (away(b) < away(a) ? b : a));
    Object.assign(scene, base, { peak, width: near.width, second: near.second, reference: near.reference });
  }
  return { scene, problems };
}

const FLAGS = { log: "log", own: "own", forces: "forces", samples: "samples", sampled: "sampled" };

function toHash(app) {
  const hash = new URLSearchParams();
  for (const [key, value] of Object.entries(app.scene)) {
    hash.set(key, typeof value === "string" ? value : JSON.stringify(value));
  }
  hash.set("methods", app.state.shown.join(","));
  hash.set("step", app.film ? app.film.steps[app.state.frame] : 0);
  hash.set("view", app.state.view);
  for (const [key, name] of Object.entries(FLAGS)) hash.set(name, app.state[key] ? "1" : "0");
  return "#" + hash.toString();
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function fromHash(app, text) {
  const hash = new URLSearchParams(text.replace(/^#/, ""));
  const wanted = {};
  const problems = [];
  const state = {};
  for (const [key, value] of hash) {
    if (key in app.meta.scene) wanted[key] = key === "reference" && !value.startsWith("[") ? value : parsed(value);
    else if (key === "methods") {
      const names = value.split(",").filter(Boolean);
      const known = names.filter((n) => app.index.has(n));
      if (known.length < names.length || !known.length)
        problems.push("Some methods of the address are not in this page.");
      if (known.length) state.shown = [...new Set(known)];
    } else if (key === "step") state.step = value === "last" ? Infinity : Number(value);
    else if (key === "view" && ["side", "over"].includes(value)) state.view = value;
    else if (key in FLAGS && ["0", "1"].includes(value)) state[key] = value === "1";
    else problems.push(`The address says “${key}=${value}”, which means nothing here.`);
  }
  if (Number.isNaN(state.step) || state.step < 0) {
    problems.push(`Step “${hash.get("step")}” is not a number from 0 up; step 0 is shown.`);
    state.step = 0;
  }
  const { scene, problems: more } = valid(app, wanted);
  return { scene, state, problems: [...problems, ...more] };
}

// ------------------------------------------------------------------------------------------------- what the film holds

// The rows of one method at one frame; sampled where that is chosen and there.
function row(app, film, kind, method, frame, exact = false) {
  const sampled = `sampled_${kind}`;
  const name = app.state.sampled && !exact && film.arrays[sampled] ? sampled : kind;
  const size = film.shapes[name].slice(2).reduce((a, b) => a * b, 1);
  const start = (method * film.steps.length + frame) * size;
  return film.arrays[name].subarray(start, start + size);
}

const hasSampled = (app) => Boolean(app.film?.arrays.sampled_log_prob);
const isSampled = (app) => app.state.sampled && hasSampled(app);
const frames = (app) => app.film?.steps.length ?? 1;
const shownMethods = (app) => app.state.shown.map((name) => app.index.get(name));
// While a prediction is made, its method alone is in the picture.
const pictured = (app) => (app.predict ? [app.predict.method] : shownMethods(app));

const ownAxes = (app) => app.state.own && app.state.view === "side" && !app.state.log;
const presenting = (app) => app.root.classList.contains("present");

// The largest finite entry: an exact run asks for rewards without end.
function maximum(array) {
  let most = -Infinity;
  for (let i = 0; i < array.length; i++) if (array[i] > most && array[i] < Infinity) most = array[i];
  return most;
}

// The arrows' scale belongs to the whole film, so that a fading force is seen to fade. Kept until the film, the methods
// or the run change.
function longestForce(app) {
  const key = [app.film.id, app.state.sampled, pictured(app).join()].join("|");
  if (app.longest?.key === key && app.longest.film === app.film) return app.longest.value;
  let value = 0;
  for (const method of pictured(app)) {
    const target = app.meta.methods[method].data === "target";
    for (let frame = 0; frame < frames(app); frame++) {
      for (const force of row(app, app.film, "force", method, frame, target)) value = Math.max(value, Math.abs(force));
    }
  }
  app.longest = { key, film: app.film, value };
  return value;
}

// The top of the probability axis, one for all pictures unless each is to have its own: a rung of the ladder above all
// that is drawn at this frame.
function topOf(app, methods = pictured(app)) {
  const those = ownAxes(app) ? methods : pictured(app);
  const rows = those.map((method) => row(app, app.film, "log_prob", method, app.state.frame));
  if (app.pin) rows.push(...those.map((method) => ghostRow(app, "log_prob", method)));
  const top = Math.exp(
    Math.max(...[app.film.arrays.ref_log_prob, app.film.arrays.optimum_log_prob, ...rows].map(maximum)),
  );
  return LADDER.find((rung) => top <= rung) ?? 1;
}

// ------------------------------------------------------------------------------------------------------------- drawing

// One line through all actions.
function line(values, x, y) {
  let path = "";
  for (let i = 0; i < values.length; i++) path += `${i ? "L" : "M"}${px(x(i))} ${px(y(values[i]))}`;
  return path;
}

const area = (path, x, n, base) => `${path}L${px(x(n - 1))} ${px(base)}L${px(x(0))} ${px(base)}Z`;
const dashed = (dashes, width = 1) => (dashes?.length ? dashes.map((d) => d * width).join(" ") : null);

const laneHeight = (app) => (presenting(app) ? 2.6 : 3.6) * app.em;

function frameOf(app, width, height, lanes, titled) {
  const em = app.em;
  const left = 3.3 * em;
  const right = width - 0.9 * em;
  const top = (titled ? 2.1 : 0.9) * em;
  const lane = laneHeight(app);
  const bottom = height - 1.7 * em - lanes * lane - (lanes ? 0.5 * em : 0);
  const actions = app.meta.actions;
  const x = (a) => left + ((a + 0.5) * (right - left)) / actions;
  return { left, right, top, bottom, lane, x, width, height, perAction: (right - left) / actions };
}

function xTicks(app, box, group, y) {
  const actions = app.meta.actions;
  const step = actions <= 20 ? 5 : actions <= 50 ? 10 : box.width < 26 * app.em ? 25 : 20;
  // The last tick gives way to the axis's name.
  for (let a = 0; a < actions && box.x(a) < box.right - (presenting(app) ? 4.4 : 3.2) * app.em; a += step) {
    group.append(svg("text", { x: px(box.x(a)), y: px(y), class: "tick", "text-anchor": "middle" }, String(a)));
  }
  group.append(svg("text", { x: px(box.right), y: px(y), class: "tick", "text-anchor": "end" }, "action"));
}

function logY(box) {
  return (logProb) => box.bottom - (1 - clamp(logProb / Math.LN10 / FLOOR, 0, 1)) * (box.bottom - box.top);
}

function linearY(box, top) {
  return (logProb) => box.bottom - Math.min(1.02, Math.exp(logProb) / top) * (box.bottom - box.top);
}

// Arrows of one lane as one path: stems, and heads where they are long enough to carry one. Lengths are cube roots:
// on one scale, forces of pairs are a hundred times weaker than those of imitation, and have to be seen too.
function arrows(values, places, box, middle, longest, shiftOf, edge) {
  const half = box.lane / 2 - 3 - edge;
  const head = clamp(box.perAction * 0.9, 2, 4);
  let path = "";
  for (let i = 0; i < values.length; i++) {
    const length = Math.cbrt(values[i] / (longest || 1)) * half;
    if (Math.abs(length) < 0.4 || places(i) < 0) continue;
    const x = box.x(places(i));
    // An arrow on a dot starts at its edge, or the dot would cover it.
    const from = middle - shiftOf(i) - Math.sign(length) * edge;
    const end = from - length;
    path += `M${px(x)} ${px(from)}V${px(end)}`;
    if (Math.abs(length) > head) {
      const back = end + Math.sign(length) * head;
      path += `M${px(x - head)} ${px(back)}L${px(x)} ${px(end)}L${px(x + head)} ${px(back)}`;
    }
  }
  return path;
}

// A lane below the picture for each method: what this step's group is, and how it is pulled and pushed.
function makeLane(app, box, method, index, named) {
  const middle = box.bottom + 1.9 * app.em + (index + 0.5) * box.lane;
  const colour = `var(--m${method})`;
  const force = svg("path", { class: "force", stroke: colour });
  const dots = range(app.meta.responses ?? 0).map(() => svg("circle", { r: 3.2, class: "dot", fill: colour }));
  const group = svg("g", { class: "lane" });
  group.append(svg("line", { class: "axis", x1: px(box.left), x2: px(box.right), y1: px(middle), y2: px(middle) }));
  const side = { x: px(box.left - 6), "text-anchor": "end" };
  if (!app.hidden("forces")) {
    const pull = svg("text", { ...side, class: "tick pull", y: px(middle - 0.35 * app.em) }, "pull ↑");
    const push = svg("text", { ...side, class: "tick push", y: px(middle + 1.1 * app.em) }, "push ↓");
    group.append(pull, push);
  }
  group.append(force, ...dots);
  if (named) {
    const y = middle - box.lane / 2 + 0.75 * app.em;
    group.append(svg("text", { x: px(box.right), y: px(y), class: "tick", "text-anchor": "end" }, named));
  }
  const update = () => {
    const sampled = isSampled(app);
    const { frame } = app.state;
    // A method that learns from the target has no sampled group: its forces stay those on all actions.
    const target = app.meta.methods[method].data === "target";
    const values = row(app, app.film, "force", method, frame, target);
    const shift = new Float32Array(values.length);
    let places = (i) => i;
    let drawn = [];
    if (sampled) {
      const size = app.film.shapes.response[2];
      const start = (method * frames(app) + frame) * size;
      drawn = app.film.arrays.response.subarray(start, start + size);
      const count = new Map();
      drawn.forEach((a, i) => {
        shift[i] = (count.get(a) ?? 0) * 3;
        count.set(a, (count.get(a) ?? 0) + 1);
      });
      if (!target) places = (i) => drawn[i];
    }
    const path = app.state.forces
      ? arrows(
          values,
          places,
          box,
          middle,
          longestForce(app),
          (i) => shift[i],
          app.state.samples && !target && sampled ? 4 : 0,
        )
      : "";
    put(force, { d: path, "stroke-width": sampled ? 2 : 1.4 });
    dots.forEach((dot, i) => {
      const visible = sampled && app.state.samples && drawn[i] >= 0;
      put(dot, { visibility: visible ? null : "hidden" });
      if (visible) put(dot, { cx: px(box.x(drawn[i])), cy: px(middle - shift[i]) });
    });
  };
  return { group, update };
}

// Labels stand beside their curve's highest point and give way to one another downwards.
function placeLabels(app, box, labels) {
  labels.sort((a, b) => a.y - b.y);
  let lowest = box.top + 0.2 * app.em;
  for (const label of labels) {
    label.y = Math.max(label.y, lowest);
    lowest = label.y + 1.3 * app.em;
  }
  let highest = box.bottom - 0.5 * app.em;
  for (const label of [...labels].reverse()) {
    label.y = Math.min(label.y, highest);
    highest = label.y - 1.3 * app.em;
  }
  for (const label of labels) {
    const leftward = label.x > box.left + 0.6 * (box.right - box.left);
    const swatch = 1.6 * app.em;
    const x = leftward ? label.x - 1.2 * app.em : label.x + 1.2 * app.em;
    put(label.swatch, {
      x1: px(leftward ? x - swatch : x),
      x2: px(leftward ? x : x + swatch),
      y1: px(label.y),
      y2: px(label.y),
    });
    put(label.text, {
      x: px(leftward ? x - swatch - 5 : x + swatch + 5),
      y: px(label.y + 0.35 * app.em),
      "text-anchor": leftward ? "end" : "start",
    });
  }
}

// A picture of policies: one method (side by side) or all (overlaid), on the reward, the reference and the optimum.
function makePicture(app, methods, width, height) {
  const single = methods.length === 1;
  const laned = (app.state.forces || app.state.samples) && !app.predict;
  const box = frameOf(app, width, height, laned ? methods.length : 0, true);
  const node = svg("svg", { class: "picture", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const ticks = svg("g");
  xTicks(app, box, ticks, box.bottom + 1.25 * app.em);
  const axisName = svg("text", { class: "tick", x: px(box.left), y: px(1.55 * app.em) });
  const gridLines = range(7).map(() => svg("line", { class: "grid", x1: px(box.left), x2: px(box.right) }));
  const gridNames = range(7).map(() => svg("text", { class: "tick", x: px(box.left - 6), "text-anchor": "end" }));
  const reward = svg("path", { class: "reward" });
  const reference = svg("path", { class: "reference", "stroke-dasharray": dashed(app.meta.style.reference.dashes, 2) });
  const optimum = svg("path", { class: "optimum" });
  node.append(...gridLines, reward, ...gridNames, reference, optimum);
  const curves = methods.map((method) => {
    const about = app.meta.methods[method];
    const colour = `var(--m${method})`;
    const fill = svg("path", { class: "fill", fill: colour });
    const ghost = svg("path", { class: "ghost" });
    const stroke = svg("path", { class: "curve", stroke: colour, "stroke-dasharray": dashed(about.dashes, 2.6) });
    const swatch = svg("line", { class: "curve", stroke: colour, "stroke-dasharray": dashed(about.dashes, 2.6) });
    const text = svg("text", { class: "name" }, about.label);
    node.append(fill, ghost, stroke);
    return { method, fill, ghost, stroke, swatch, text };
  });
  for (const curve of curves) node.append(curve.swatch, curve.text);
  const lanes = laned ? methods.map((m, i) => makeLane(app, box, m, i, single ? "" : app.meta.methods[m].label)) : [];
  node.append(
    svg("line", { class: "axis", x1: px(box.left), x2: px(box.right), y1: px(box.bottom), y2: px(box.bottom) }),
  );
  node.append(ticks, axisName, ...lanes.map((lane) => lane.group));
  if (single) titleOf(app, box, curves[0]);

  const drawGrid = (y, top) => {
    const every = box.bottom - box.top < 7 * app.em ? 2 : 1; // Fewer names where they would touch.
    const marks = (app.state.log ? [0, -3, -6, -9, -12] : range(5).map((i) => (top * i) / 4)).filter(
      (_, i) => i % every === 0,
    );
    gridLines.forEach((gridLine, i) => {
      const visible = i < marks.length && app.predict?.stage !== "sketch"; // A sketch has no scale: its shape counts.
      for (const part of [gridLine, gridNames[i]]) put(part, { visibility: visible ? null : "hidden" });
      if (!visible) return;
      const at = y(app.state.log ? marks[i] * Math.LN10 : Math.log(marks[i]));
      put(gridLine, { y1: px(at), y2: px(at) });
      put(gridNames[i], { y: px(at + 0.35 * app.em) });
      write(gridNames[i], app.state.log ? power(marks[i]) : String(Number(marks[i].toPrecision(3))));
    });
    write(axisName, single ? "" : app.state.log ? "probability (log scale)" : "probability");
  };
  const update = () => {
    const { film } = app;
    const actions = app.meta.actions;
    const top = topOf(app, methods);
    const y = app.state.log ? logY(box) : linearY(box, top);
    drawGrid(y, top);
    const high = Math.max(1e-9, maximum(film.arrays.reward));
    const gold = line(film.arrays.reward, box.x, (r) => box.bottom - (0.94 * r * (box.bottom - box.top)) / high);
    put(reward, { d: area(gold, box.x, actions, box.bottom) });
    put(reference, { d: line(film.arrays.ref_log_prob, box.x, y) });
    put(optimum, { d: line(film.arrays.optimum_log_prob, box.x, y) });
    const labels = [];
    for (const curve of curves) {
      const values = row(app, film, "log_prob", curve.method, app.state.frame);
      const path = line(values, box.x, y);
      const covered = app.predict?.stage === "sketch";
      put(curve.stroke, { d: covered ? null : path });
      put(curve.fill, { d: single && !covered ? area(path, box.x, actions, box.bottom) : null });
      put(curve.ghost, { d: app.pin ? line(ghostRow(app, "log_prob", curve.method), box.x, y) : null });
      const highest = values.indexOf(maximum(values));
      labels.push({ ...curve, x: box.x(highest), y: y(values[highest]) });
    }
    if (!single) placeLabels(app, box, labels);
    for (const lane of lanes) lane.update();
    const what = curves.map((c) => summary(app, c.method)).join("; ");
    put(node, { "aria-label": `Probability of each action${app.state.log ? ", log scale" : ""}. ${what}` });
  };
  return { node, update, box };
}

function titleOf(app, box, { swatch, text }) {
  const y = 1.1 * app.em;
  put(swatch, {
    x1: px(box.left),
    x2: px(box.left + 2 * app.em),
    y1: px(y - 0.35 * app.em),
    y2: px(y - 0.35 * app.em),
  });
  put(text, { x: px(box.left + 2.5 * app.em), y: px(y) });
}

function ghostRow(app, kind, method) {
  return row(app, app.pin.film, kind, method, Math.min(app.state.frame, app.pin.film.steps.length - 1));
}

function numberOf(app, method, name, frame = app.state.frame) {
  return row(app, app.film, "numbers", method, frame)[app.meta.numbers.findIndex((n) => n.name === name)];
}

function summary(app, method) {
  const parts = app.meta.numbers
    .filter((n) => n.name === "expected_reward" || n.name === "kl")
    .map((n) =>
      `${n.name === "kl" ? "KL" : n.label.toLowerCase()} ${short(numberOf(app, method, n.name))} ${n.unit}`.trim(),
    );
  return `${app.meta.methods[method].label} at step ${app.film.steps[app.state.frame]}: ${parts.join(", ")}`;
}

// What the stage's other parts leave of the screen for the pictures.
function room(app, pictures) {
  const { top, height } = pictures.parentElement.getBoundingClientRect();
  const others = height - pictures.getBoundingClientRect().height;
  return app.root.clientHeight - (top + app.root.scrollTop) - others - 0.5 * app.em;
}

// Side by side or overlaid: nodes are made anew only when the methods, the view or the size change.
function makePictures(app) {
  const node = html("div", { class: "pictures" });
  let pictures = [];
  const sizes = () => {
    const width = Math.max(260, node.clientWidth);
    const count = pictured(app).length || 1;
    const together = app.state.view === "over" || app.predict;
    const columns = together ? 1 : Math.max(1, Math.min(count, Math.floor(width / ((presenting(app) ? 15 : 19) * app.em)), count === 4 ? 2 : 3));
    const gap = 0.9 * app.em;
    const rows = Math.ceil(count / columns);
    const lane = (app.state.forces || app.state.samples) && !app.predict ? laneHeight(app) + 0.4 * app.em : 0;
    const high = clamp(0.44 * innerHeight, 14 * app.em, 23 * app.em);
    const plain = together ? high : clamp((23 * app.em) / rows, 11 * app.em, 20 * app.em);
    const lanes = together ? count * lane * 0.92 : lane;
    const height = presenting(app) ? (room(app, node) - (rows - 1) * gap) / rows : plain + lanes;
    return {
      columns,
      width: Math.floor((width - (columns - 1) * gap) / columns),
      height: Math.floor(Math.max(height, lanes + 7 * app.em)),
    };
  };
  const build = () => {
    const { columns, width, height } = sizes();
    const methods = pictured(app);
    node.style.setProperty("--columns", columns);
    const groups =
      app.state.view === "over" || app.predict ? (methods.length ? [methods] : []) : methods.map((m) => [m]);
    pictures = groups.map((group) => makePicture(app, group, width, height));
    const empty = html("p", { class: "empty" }, "No method is chosen. Tick one under Methods.");
    node.replaceChildren(...(pictures.length ? pictures.map((p) => p.node) : [empty]));
    if (app.predict) app.predict.attach(pictures[0]);
  };
  const update = () => {
    for (const picture of pictures) picture.update();
    app.predict?.update();
  };
  return { node, build, update };
}

// What the marks are, and the one scale of all arrows.
function makeLegend(app) {
  const mark = (shape) => svg("svg", { class: "mark", width: 30, height: 12, viewBox: "0 0 30 12" }, shape);
  const stroke = (name, dashes) =>
    svg("line", { class: name, x1: 1, x2: 29, y1: 6, y2: 6, "stroke-dasharray": dashes });
  const item = (picture, text) => html("span", { class: "item" }, picture, html("span", { "data-text": "" }, text));
  const force = html("span", { "data-text": "", class: "item" });
  const axes = html("span", { "data-text": "", class: "item" });
  const pinned = html("span", { "data-text": "" });
  const pin = html("span", { class: "item" }, mark(stroke("ghost", null)), pinned);
  const node = html(
    "p",
    { class: "legend" },
    item(mark(svg("path", { class: "reward", d: "M2 12C9 12 11 2 15 2S21 12 28 12Z" })), "reward (own scale)"),
    item(mark(stroke("reference", dashed(app.meta.style.reference.dashes, 2))), "reference"),
    item(mark(stroke("optimum", null)), "optimum"),
    pin,
    axes,
    force,
  );
  const update = () => {
    write(axes, ownAxes(app) ? "each picture has its own probability axis" : "one probability axis for all");
    axes.hidden = app.state.log || app.state.view === "over" || Boolean(app.predict);
    pin.hidden = !app.pin;
    if (app.pin) write(pinned, `pinned: ${describe(app.pin.scene)}`);
    force.hidden = !app.state.forces || Boolean(app.predict);
    if (app.state.forces)
      write(force, `arrow length: cube root of the force, one scale for all, longest ${short(longestForce(app))}`);
  };
  return { node, update };
}

// ------------------------------------------------------------------------------------------- the world and its handles

// Handles grow with large type.
const enlarged = (app) => Math.max(1, app.em / 15);

// A slider that is an SVG element: a pointer drags it, keys move it, and where it cannot move it says why.
function makeHandle(app, spec) {
  const group = svg("g", { class: `handle ${spec.kind}`, role: "slider", tabindex: 0, "aria-label": spec.label });
  group.append(svg("circle", { class: "hit", r: TOUCH }), svg("circle", { class: "ring", r: 14 }), ...spec.glyph());
  const to = (value, settled) => {
    const locked = spec.locked();
    if (locked) return app.say(locked);
    const values = spec.values?.();
    const { min, max } = spec.limits();
    const nearest = (list) => list.reduce((a, b) => (Math.abs(b - value) < Math.abs(a - value) ? b : a));
    const step = spec.step ?? 1;
    const snapped = values ? nearest(values) : clamp(Number((Math.round(value / step) * step).toFixed(6)), min, max);
    if (snapped === spec.get() && !settled) return undefined;
    app.hint.hidden = true;
    return spec.set(snapped, settled);
  };
  const jump = (by) => {
    const values = spec.values?.();
    if (!values) return spec.get() + by * (spec.step ?? 1);
    const sorted = [...values].sort((a, b) => a - b);
    return sorted[clamp(sorted.indexOf(spec.get()) + Math.sign(by), 0, sorted.length - 1)];
  };
  draggable(group, {
    start: () => {
      const locked = spec.locked();
      if (locked) app.say(locked);
      return locked ? null : { value: spec.get() };
    },
    move: (from, dx, dy) => to(spec.drag(from.value, dx, dy), false),
    end: () => to(spec.get(), true),
  });
  group.addEventListener("keydown", (event) => {
    const large = event.shiftKey ? 5 : 1;
    const { min, max } = spec.limits();
    const moves = {
      ArrowRight: () => jump(large),
      ArrowUp: () => jump(large),
      ArrowLeft: () => jump(-large),
      ArrowDown: () => jump(-large),
      PageUp: () => jump(10),
      PageDown: () => jump(-10),
      Home: () => min,
      End: () => max,
    };
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    to(moves[event.key](), true);
  });
  const update = (x, y) => {
    const { min, max } = spec.limits();
    const locked = spec.locked();
    const text = `${spec.label.toLowerCase()} ${spec.get()}`;
    put(group, {
      transform: `translate(${px(x)} ${px(y)}) scale(${enlarged(app)})`,
      "aria-valuemin": min,
      "aria-valuemax": max,
      "aria-valuenow": spec.get(),
      "aria-valuetext": locked ? `${text}; ${locked}` : text,
      "aria-disabled": locked ? "true" : null,
    });
    group.classList.toggle("locked", Boolean(locked));
    write(
      group.querySelector("title") ?? group.appendChild(svg("title")),
      locked ?? `${spec.label}: drag, or use the arrow keys`,
    );
  };
  return { group, update, to };
}

// Pointer events with capture: the same code for mouse, pen and finger.
function draggable(node, { start, move, end, scrolls = false }) {
  let from = null;
  // Parts of a drawing have no touch-action of their own: this keeps a finger on a handle from scrolling the page.
  if (!scrolls) node.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || from) return;
    const begun = start(event);
    if (!begun) return;
    from = { ...begun, x: event.clientX, y: event.clientY, id: event.pointerId };
    node.setPointerCapture(event.pointerId);
    event.preventDefault();
    node.focus?.({ preventScroll: true });
  });
  node.addEventListener("pointermove", (event) => {
    if (from && event.pointerId === from.id) move(from, event.clientX - from.x, event.clientY - from.y, event);
  });
  const stop = (event) => {
    if (!from || event.pointerId !== from.id) return;
    from = null;
    end?.(event);
  };
  node.addEventListener("pointerup", stop);
  node.addEventListener("pointercancel", stop);
}

const arrowGlyph = (turned) => () => [
  svg("circle", { class: "knob", r: 10 }),
  svg("path", {
    class: "sign",
    d: "M-2.5 -3.5L-6 0L-2.5 3.5M2.5 -3.5L6 0L2.5 3.5",
    transform: turned ? "rotate(90)" : null,
  }),
  svg("path", { class: "lock", d: "M-4 -1H4V5H-4ZM-2.5 -1V-3A2.5 2.5 0 0 1 2.5 -3V-1" }),
];

// Values of one part of the scene for which the file has runs, the other parts staying as they are.
function gridValues(app, pick, fits) {
  if (!app.source.grid) return null;
  return [...new Set(app.source.grid.filter(fits).map(pick))];
}

function lockReason(app, what, values) {
  if (!values || values.length > 1) return null;
  const only = `${what.toLowerCase()} ${values[0]}`;
  return `${what} is fixed: this page was exported with ${only} only. In a notebook it moves.`;
}

// The handles of one peak: part(scene) is the scene itself or its second peak.
function peakHandles(app, box, second) {
  const part = () => (second ? app.scene.second : app.scene);
  const change = (partial, settled) =>
    app.change(second ? { second: { ...app.scene.second, ...partial } } : partial, settled);
  const name = (word) => (second ? `Second ${word.toLowerCase()}` : word);
  const others = (e, key) =>
    second
      ? e.second &&
        e.width === app.scene.width &&
        same(e.reference, app.scene.reference) &&
        same({ ...e.second, [key]: 0 }, { ...app.scene.second, [key]: 0 })
      : same(e.second, app.scene.second) && same(e.reference, app.scene.reference);
  const values = (key) =>
    gridValues(
      app,
      (e) => (second ? e.second[key] : e[key]),
      (e) => others(e, key),
    );
  const limitsFrom = (list, fallback) => () =>
    list() ? { min: Math.min(...list()), max: Math.max(...list()) } : fallback();
  const widths = () => values("width");
  const places = () => (second ? values("peak") : null);
  const heights = () => (app.source.grid ? [part().height] : null);
  const peak = makeHandle(app, {
    kind: "peak",
    label: name("Peak"),
    glyph: arrowGlyph(false),
    get: () => part().peak,
    values: places,
    limits: limitsFrom(places, () => app.limits("peak")),
    locked: () => lockReason(app, name("Peak"), places()),
    drag: (from, dx) => from + dx / box.perAction,
    set: (value, settled) => change({ peak: value }, settled),
  });
  const width = makeHandle(app, {
    kind: "width",
    label: name("Width"),
    glyph: arrowGlyph(false),
    get: () => part().width,
    values: widths,
    limits: limitsFrom(widths, () => app.limits("width")),
    locked: () => lockReason(app, name("Width"), widths()),
    step: app.limits("width").step,
    drag: (from, dx) => from + (dx * flip(part().peak)) / box.perAction,
    set: (value, settled) => change({ width: value }, settled),
  });
  const height = makeHandle(app, {
    kind: "height",
    label: name("Height"),
    glyph: arrowGlyph(true),
    get: () => part().height,
    values: heights,
    limits: limitsFrom(heights, () => app.limits("height")),
    locked: () => lockReason(app, name("Height"), heights()),
    step: app.limits("height").step,
    drag: (from, dx, dy) => from - (dy * box.most()) / (box.bottom - box.top),
    set: (value, settled) => change({ height: value }, settled),
  });
  // Handles that would leave the picture stand on the other flank.
  const flip = (place) => (box.x(place) > box.right - 5 * app.em - 2 * box.reach ? -1 : 1);
  const all = [peak];
  if (!app.hidden("width")) all.push(width);
  if (!app.hidden("height") && !app.source.grid) all.push(height);
  const groups = all.map((h) => h.group);
  const update = () => {
    for (const group of groups) put(group, { visibility: part() ? null : "hidden", tabindex: part() ? 0 : null });
    if (!part()) return;
    const x = box.x(part().peak);
    const y = box.y(part().height);
    const side = flip(part().peak);
    peak.update(x, y);
    // Far enough from the peak's own handle for a finger, however narrow the peak is.
    const away = Math.max(part().width * 0.83 * box.perAction, 2 * box.reach + 2);
    width.update(x + side * away, (y + box.bottom) / 2);
    height.update(x - side * (2 * box.reach + 4), y);
  };
  // Where words beside the peak are covered by no handle.
  const free = (side) =>
    (all.includes(height) && side === -flip(part().peak) ? 3 : 1) * box.reach + 0.6 * app.em;
  return { groups, update, peak, free };
}

// The strip above: what is rewarded (gold, to be dragged) and where the policy starts (grey).
function makeWorld(app) {
  const node = html("div", { class: "world" });
  let update = () => {};
  const build = () => {
    const width = Math.max(260, node.clientWidth);
    const height = Math.round((presenting(app) ? 7.4 : 9.4) * app.em);
    const box = frameOf(app, width, height, 0, false);
    box.top = 2.3 * app.em;
    box.reach = TOUCH * enlarged(app);
    box.most = () => Math.max(app.film ? maximum(app.film.arrays.reward) : 1, app.scene.height, app.meta.scene.height);
    box.y = (value) => box.bottom - (value / box.most()) * (box.bottom - box.top);
    const drawing = () => Array.isArray(app.scene.reference);
    const picture = svg("svg", { class: "picture", width, height, viewBox: `0 0 ${width} ${height}`, role: "group" });
    put(picture, { "aria-label": "The reward, to be dragged, and the reference" });
    const gold = svg("path", { class: "reward grip" });
    const edge = svg("path", { class: "reward-edge" });
    const grey = svg("path", { class: "reference", "stroke-dasharray": dashed(app.meta.style.reference.dashes, 2) });
    const ticks = svg("g");
    xTicks(app, box, ticks, box.bottom + 1.25 * app.em);
    const rewardTop = svg("text", { class: "tick", x: px(box.left - 6), "text-anchor": "end" });
    const zero = svg("text", { class: "tick", x: px(box.left - 6), y: px(box.bottom + 4), "text-anchor": "end" }, "0");
    const caption = svg("text", { class: "name world-name", x: px(box.left), y: px(1.1 * app.em) });
    const axis = svg("line", {
      class: "axis",
      x1: px(box.left),
      x2: px(box.right),
      y1: px(box.bottom),
      y2: px(box.bottom),
    });
    const sheet = svg("rect", {
      class: "sheet",
      x: box.left,
      y: box.top,
      width: box.right - box.left,
      height: box.bottom - box.top,
    });
    const pencil = makePencil(app, box, drawing);
    const first = peakHandles(app, box, false);
    const other = app.hidden("second") ? null : peakHandles(app, box, true);
    picture.append(gold, edge, grey, axis, ticks, rewardTop, zero, caption, sheet);
    // The hill itself is as good a grip as its knob.
    draggable(gold, {
      start: () => ({ value: app.scene.peak }),
      move: (from, dx) => first.peak.to(from.value + dx / box.perAction, false),
      end: () => first.peak.to(app.scene.peak, true),
    });
    const handles = svg("g", { class: "handles" }, ...(other?.groups ?? []), ...first.groups, pencil.group);
    picture.append(handles);
    drawable(sheet, pencil.stroke);
    const hint = svg("text", { class: "hint" });
    handles.append(hint);
    node.replaceChildren(picture);
    update = () => {
      const { arrays } = app.film;
      const path = line(arrays.reward, box.x, box.y);
      put(gold, { d: area(path, box.x, app.meta.actions, box.bottom) });
      put(edge, { d: path });
      const top = Math.exp(maximum(arrays.ref_log_prob));
      const y = drawing() ? pencil.y : linearY(box, top * 1.02);
      put(grey, { d: line(arrays.ref_log_prob, box.x, y) });
      put(sheet, { visibility: drawing() ? null : "hidden" });
      put(rewardTop, { y: px(box.y(box.most()) + 4) });
      write(rewardTop, short(box.most()));
      const scale = drawing() ? "grey, log scale: draw it" : `grey, highest ${short(top)}`;
      write(caption, `Reward (gold) · reference (${scale})`);
      first.update();
      other?.update();
      pencil.update();
      const left = box.x(app.scene.peak) > (box.left + box.right) / 2;
      const side = left ? -1 : 1;
      const x = box.x(app.scene.peak) + side * first.free(side);
      put(hint, { x: px(x), y: px(box.y(app.scene.height) + 0.35 * app.em), "text-anchor": left ? "end" : "start" });
      write(hint, width < 30 * app.em ? "Drag me" : "Drag the gold peak, then press Play");
      put(hint, { visibility: app.hint.hidden ? "hidden" : null });
      first.peak.group.classList.toggle("calling", !app.hint.hidden);
    };
  };
  return { node, build, update: () => update() };
}

const PENCIL_FLOOR = -6;

// The reference drawn by hand: a pointer on the sheet, or a cursor that arrow keys move and lift.
function makePencil(app, box, drawing) {
  let cursor = 0;
  const y = (log) => box.bottom - (1 - clamp(log / Math.LN10 / PENCIL_FLOOR, 0, 1)) * (box.bottom - box.top);
  const log = (height) => (1 - clamp(height, 0, 1)) * PENCIL_FLOOR * Math.LN10;
  const group = svg("g", { class: "handle pencil", role: "slider", tabindex: 0, "aria-label": "Draw the reference" });
  group.append(
    svg("circle", { class: "hit", r: TOUCH }),
    svg("circle", { class: "ring", r: 12 }),
    svg("circle", { class: "knob", r: 5 }),
  );
  const weights = () => app.film.arrays.ref_log_prob;
  const set = (changes, settled) => {
    const list = Array.from(app.scene.reference);
    for (const [a, value] of changes) list[a] = Number(value.toFixed(3));
    return app.change({ reference: list }, settled);
  };
  group.addEventListener("keydown", (event) => {
    const by = event.shiftKey ? 5 : 1;
    const sideways = { ArrowLeft: -by, ArrowRight: by, Home: -Infinity, End: Infinity }[event.key];
    const lift = { ArrowUp: by, ArrowDown: -by, PageUp: 10, PageDown: -10 }[event.key];
    if (sideways === undefined && lift === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (sideways !== undefined) cursor = clamp(cursor + sideways, 0, app.meta.actions - 1);
    else set([[cursor, app.scene.reference[cursor] + 0.2 * lift]], true);
    update();
  });
  const stroke = (changes, settled) => {
    if (changes.length) cursor = changes.at(-1)[0];
    set(
      changes.map(([a, height]) => [a, log(height)]),
      settled,
    );
  };
  stroke.box = box;
  const update = () => {
    const visible = drawing();
    put(group, { visibility: visible ? null : "hidden", tabindex: visible ? 0 : null });
    if (!visible || !app.film) return;
    const value = weights()[cursor];
    put(group, {
      transform: `translate(${px(box.x(cursor))} ${px(y(value))})`,
      "aria-valuemin": 0,
      "aria-valuemax": 1,
      "aria-valuenow": Math.exp(value).toPrecision(3),
      "aria-valuetext": `action ${cursor}, probability ${short(Math.exp(value))}; left and right choose the action`,
    });
  };
  return { group, stroke, update, y };
}

// Freehand: every action between two pointer positions is set. stroke([[action, height 0..1]...], settled).
function drawable(sheet, stroke) {
  let last = null;
  const at = (event) => {
    const { box } = stroke;
    const frame = sheet.ownerSVGElement.getBoundingClientRect();
    const x = (event.clientX - frame.left) * (box.width / frame.width);
    const y = (event.clientY - frame.top) * (box.height / frame.height);
    const count = Math.round((box.right - box.left) / box.perAction);
    return [clamp(Math.floor((x - box.left) / box.perAction), 0, count - 1), (box.bottom - y) / (box.bottom - box.top)];
  };
  const between = ([a, h], [b, k]) => {
    const steps = Math.max(1, Math.abs(b - a));
    return range(steps + 1).map((i) => [a + Math.round(((b - a) * i) / steps), clamp(h + ((k - h) * i) / steps, 0, 1)]);
  };
  draggable(sheet, {
    start: (event) => {
      last = at(event);
      stroke([last.map((v, i) => (i ? clamp(v, 0, 1) : v))], false);
      return {};
    },
    move: (from, dx, dy, event) => {
      const now = at(event);
      stroke(between(last, now), false);
      last = now;
    },
    end: () => stroke([], true),
  });
}

// --------------------------------------------------------------------------------------------------- numbers and curve

function makeNumbers(app) {
  const node = html("div", { class: "numbers", role: "region", "aria-label": "Numbers", tabindex: 0 });
  const title = html("caption", { "data-text": "" });
  let cells = [];
  const build = () => {
    const heads = app.meta.numbers.map((n) =>
      html("th", { scope: "col", "data-text": "" }, n.unit ? `${n.label}, ${n.unit}` : n.label),
    );
    const table = html(
      "table",
      {},
      title,
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "Method"), ...heads)),
    );
    cells = [];
    const rows = shownMethods(app).map((method) => {
      const name = html(
        "th",
        { scope: "row" },
        swatch(app, method),
        html("span", { "data-text": "" }, app.meta.methods[method].label),
      );
      const values = app.meta.numbers.map(() =>
        html("td", {}, html("span", { "data-text": "" }), html("small", { "data-text": "" })),
      );
      cells.push({ method, values });
      return html("tr", {}, name, ...values);
    });
    table.append(html("tbody", {}, ...rows));
    node.replaceChildren(table);
  };
  const update = () => {
    const sampled = isSampled(app);
    const band = sampled && app.film.arrays.band;
    const kind = sampled ? `one sampled run${band ? `, with 10–90 % of ${app.meta.seeds} runs` : ""}` : "exact";
    write(title, `Step ${app.film.steps[app.state.frame]}, ${kind}`);
    const count = app.meta.numbers.length;
    for (const { method, values } of cells) {
      const numbers = row(app, app.film, "numbers", method, app.state.frame);
      values.forEach((cell, i) => {
        write(cell.firstChild, shownNumber(app.meta.numbers[i], numbers[i]));
        const at = ((method * frames(app) + app.state.frame) * count + i) * 2;
        const [low, high] = band ? [band[at], band[at + 1]] : [0, 0];
        const wide = band && app.meta.numbers[i].name !== "queries";
        write(cell.lastChild, wide ? `${short(low)} to ${short(high)}` : "");
      });
    }
  };
  return { node, build, update };
}

function swatch(app, method) {
  const { dashes } = app.meta.methods[method];
  const stroke = { stroke: `var(--m${method})`, "stroke-dasharray": dashed(dashes, 2.6) };
  return svg(
    "svg",
    { class: "mark", width: 36, height: 12, viewBox: "0 0 36 12", "aria-hidden": "true" },
    svg("line", { class: "curve", x1: 1, x2: 35, y1: 6, y2: 6, ...stroke }),
  );
}

// One number of every shown method over the steps; the line that marks the step can be dragged like the timeline.
function makeCurve(app) {
  const choice = html("select", {
    "aria-label": "Number to draw",
    onchange: () => {
      app.number = choice.value;
      app.draw();
    },
  });
  for (const n of app.meta.numbers) {
    choice.append(html("option", { value: n.name }, n.unit ? `${n.label}, ${n.unit}` : n.label));
  }
  const place = html("div", { class: "plot" });
  const node = html("section", { class: "curve-box" }, html("h2", {}, choice), place);
  let update = () => {};
  const build = () => {
    const width = Math.max(200, place.clientWidth);
    const height = Math.round(12 * app.em);
    const box = { left: 3 * app.em, right: width - 0.8 * app.em, top: 0.8 * app.em, bottom: height - 1.8 * app.em };
    const picture = svg("svg", { class: "picture", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
    const marks = range(3).map(() => svg("text", { class: "tick", x: px(box.left - 5), "text-anchor": "end" }));
    const lines = range(3).map(() => svg("line", { class: "grid", x1: px(box.left), x2: px(box.right) }));
    const ends = ["start", "end"].map((anchor, i) =>
      svg("text", {
        class: "tick",
        x: px(i ? box.right : box.left),
        y: px(height - 0.5 * app.em),
        "text-anchor": anchor,
      }),
    );
    const now = svg("line", { class: "now", y1: px(box.top), y2: px(box.bottom) });
    const parts = shownMethods(app).map((method) => {
      const colour = `var(--m${method})`;
      const dashes = dashed(app.meta.methods[method].dashes, 2.4);
      return {
        method,
        band: svg("path", { class: "band", fill: colour }),
        ghost: svg("path", { class: "ghost" }),
        stroke: svg("path", { class: "curve", stroke: colour, "stroke-dasharray": dashes }),
        dot: svg("circle", { r: 4, fill: colour }),
      };
    });
    const sheet = svg("rect", { class: "scrub", x: box.left, y: 0, width: box.right - box.left, height });
    for (const key of ["band", "ghost", "stroke"]) picture.append(...parts.map((p) => p[key]));
    picture.prepend(...lines);
    picture.append(...marks, ...ends, now, ...parts.map((p) => p.dot), sheet);
    place.replaceChildren(picture);
    const x = (i) => box.left + ((box.right - box.left) * app.film.steps[i]) / (app.film.steps.at(-1) || 1);
    const scrub = (event) => {
      const frame = picture.getBoundingClientRect();
      const pointer = event.clientX - frame.left;
      const near = range(frames(app)).reduce((a, b) => (Math.abs(x(b) - pointer) < Math.abs(x(a) - pointer) ? b : a));
      app.seek(near);
    };
    draggable(sheet, {
      scrolls: true,
      start: (event) => (scrub(event), {}),
      move: (from, dx, dy, event) => scrub(event),
    });
    update = () => drawCurve(app, { box, x, parts, marks, lines, ends, now, picture });
  };
  return { node, build, update: () => update() };
}

function drawCurve(app, { box, x, parts, marks, lines, ends, now, picture }) {
  const name = app.number ?? app.meta.numbers[0].name;
  const column = app.meta.numbers.findIndex((n) => n.name === name);
  const count = app.meta.numbers.length;
  const band = isSampled(app) ? app.film.arrays.band : null;
  const series = (film, method) =>
    Float32Array.from(film.steps, (_, frame) => row(app, film, "numbers", method, frame)[column]);
  const bound = (method, frame, side) => band[((method * frames(app) + frame) * count + column) * 2 + side];
  const all = parts.map((p) => series(app.film, p.method));
  let top = Math.max(1e-9, ...all.map(maximum));
  if (band)
    for (const p of parts) for (const frame of range(frames(app))) top = Math.max(top, bound(p.method, frame, 1));
  const unit = 10 ** Math.floor(Math.log10(top));
  top = [1, 2, 5, 10].map((m) => m * unit).find((m) => m >= top * 0.999);
  const y = (value) => box.bottom - clamp(value / top || 0, 0, 1.02) * (box.bottom - box.top);
  marks.forEach((mark, i) => {
    const at = (top * i) / 2;
    put(mark, { y: px(y(at) + 4) });
    put(lines[i], { y1: px(y(at)), y2: px(y(at)) });
    write(mark, String(Number(at.toPrecision(2))));
  });
  write(ends[0], "0");
  write(ends[1], `step ${app.film.steps.at(-1)}`);
  put(now, { x1: px(x(app.state.frame)), x2: px(x(app.state.frame)) });
  // What lies ahead is not told: curves end where the film stands.
  const past = app.state.frame + 1;
  const upToNow = (values) => line(values.subarray(0, past), x, y);
  parts.forEach((p, i) => {
    put(p.stroke, { d: upToNow(all[i]) });
    put(p.dot, { cx: px(x(app.state.frame)), cy: px(y(all[i][app.state.frame])) });
    put(p.ghost, {
      d: app.pin && same(app.pin.film.steps, app.film.steps) ? upToNow(series(app.pin.film, p.method)) : null,
    });
    const edge = (side) => range(past).map((f) => `${px(x(f))} ${px(y(bound(p.method, f, side)))}`);
    put(p.band, { d: band ? `M${[...edge(0), ...edge(1).reverse()].join("L")}Z` : null });
  });
  const about = app.meta.numbers[column];
  put(picture, {
    "aria-label": `${about.label} over the steps for ${app.state.shown.length} methods; the numbers are in the table`,
  });
}

// ------------------------------------------------------------------------------------------------------------ controls

function button(text, action, attributes = {}) {
  return html("button", { type: "button", onclick: action, ...attributes }, text);
}

// Two ways of one thing, side by side.
function choiceOf(app, label, options, get, set) {
  const buttons = options.map(([value, text]) => button(text, () => set(value), { "data-value": value }));
  const node = html("div", { class: "choice", role: "group", "aria-label": label }, ...buttons);
  const update = () => {
    for (const b of buttons) put(b, { "aria-pressed": String(b.dataset.value === String(get())) });
  };
  return { node, update };
}

function makeSwitches(app) {
  const parts = [];
  const flag = (key) => (value) => app.set({ [key]: value === "true" });
  if (!app.hidden("view")) {
    parts.push(
      choiceOf(
        app,
        "Arrangement",
        [
          ["side", "Side by side"],
          ["over", "Overlaid"],
        ],
        () => app.state.view,
        (view) => app.set({ view }),
      ),
    );
  }
  if (!app.hidden("log")) {
    parts.push(
      choiceOf(
        app,
        "Vertical axis",
        [
          ["false", "Probability"],
          ["true", "Log"],
        ],
        () => app.state.log,
        flag("log"),
      ),
    );
  }
  if (!app.hidden("sampled")) {
    parts.push(
      choiceOf(
        app,
        "Run",
        [
          ["false", "Exact"],
          ["true", "Sampled"],
        ],
        () => app.state.sampled,
        flag("sampled"),
      ),
    );
  }
  const toggle = (name, text, title, key, here = () => true) => {
    if (app.hidden(name)) return;
    const node = button(text, () => app.set({ [key]: !app.state[key] }), { title, class: "toggle" });
    const update = () => {
      node.hidden = !here();
      put(node, { "aria-pressed": String(app.state[key]) });
    };
    parts.push({ node, update });
  };
  const several = () => app.state.view === "side" && !app.state.log && !app.predict;
  toggle("view", "Own axes", "Each picture's probability axis for itself; otherwise one for all", "own", several);
  toggle("forces", "Forces", "How the group pulls actions up and pushes them down", "forces");
  toggle("samples", "Samples", "The group that this step learns from (in the sampled run)", "samples");
  const node = html("div", { class: "switches" }, ...parts.map((p) => p.node));
  return { node, update: () => parts.forEach((p) => p.update()) };
}

function makeMethods(app) {
  const says = html("p", { class: "says" });
  const items = app.meta.methods.map((about, method) => {
    const box = html("input", { type: "checkbox", onchange: () => app.toggleMethod(about.name) });
    const node = html(
      "label",
      { class: "chip", title: about.says },
      box,
      swatch(app, method),
      html("span", { "data-text": "" }, about.label),
    );
    const tell = () => write(says, `${about.label}: ${about.says}`);
    node.addEventListener("pointerenter", tell);
    box.addEventListener("focus", tell);
    return { node, box, name: about.name };
  });
  write(says, app.meta.methods.length ? "Point at a method to read what it does." : "");
  const node = html(
    "section",
    { class: "methods" },
    html("h2", {}, "Methods"),
    html("div", { class: "chips" }, ...items.map((i) => i.node)),
    says,
  );
  const update = () =>
    items.forEach((i) => {
      i.box.checked = app.state.shown.includes(i.name);
    });
  return { node, update };
}

function makePresets(app) {
  const says = html("p", { class: "question" });
  const buttons = app.meta.presets.map((preset) =>
    button(preset.label, () => app.preset(preset), { title: preset.says }),
  );
  const node = html(
    "div",
    { class: "presets" },
    says,
    html("div", { class: "choice", role: "group", "aria-label": "Presets" }, ...buttons),
  );
  const update = () => {
    const chosen = app.meta.presets.findIndex((p) => same({ ...app.meta.scene, ...p.scene }, app.scene));
    buttons.forEach((b, i) => put(b, { "aria-pressed": String(i === chosen) }));
    write(says, chosen >= 0 ? app.meta.presets[chosen].says : "Your own scene. Press Play to watch it from the start.");
  };
  return { node, update };
}

// Settings of the world that are not dragged: the reference, a second peak, and sliders that Python asks for.
function makeSettings(app) {
  const parts = [];
  const nodes = [];
  if (!app.hidden("reference")) {
    const select = html("select", { onchange: () => app.chooseReference(select.value) });
    const options = app.meta.references.map((r) => html("option", { value: r.name }, r.label));
    select.append(...options);
    nodes.push(html("label", {}, "Reference", select));
    parts.push(() => {
      app.meta.references.forEach((r, i) => {
        const there = r.name === "drawn" || app.source.has({ ...app.scene, reference: r.name });
        options[i].disabled = !there;
        write(options[i], there ? r.label : `${r.label} (not in this page with these peaks)`);
      });
      select.value = Array.isArray(app.scene.reference) ? "drawn" : app.scene.reference;
    });
  }
  if (!app.hidden("second")) {
    const node = button("", () => app.toggleSecond(), { class: "toggle" });
    nodes.push(node);
    parts.push(() => {
      write(node, app.scene.second ? "Remove second peak" : "Add second peak");
      const locked = app.secondLock();
      put(node, { "aria-disabled": locked ? "true" : null, title: locked });
    });
  }
  for (const [name, about] of Object.entries(app.meta.controls ?? {})) {
    if (["width", "height", "peak"].includes(name) || app.hidden(name) || !(name in app.meta.scene)) continue;
    const value = html("output");
    const input = html("input", { type: "range", min: about.min, max: about.max, step: about.step });
    input.addEventListener("input", () => app.change({ [name]: Number(input.value) }, false));
    input.addEventListener("change", () => app.change({ [name]: Number(input.value) }, true));
    nodes.push(html("label", {}, html("span", {}, about.label, value), input));
    parts.push(() => {
      input.value = app.scene[name];
      write(value, ` ${app.scene[name]} ${about.unit ?? ""}`.trimEnd());
    });
  }
  return { node: html("section", { class: "settings" }, ...nodes), update: () => parts.forEach((f) => f()) };
}

function makeTransport(app) {
  const slider = html("input", { type: "range", min: 0, step: 1, "aria-label": "Step", class: "time" });
  slider.addEventListener("input", () => app.seek(Number(slider.value)));
  const play = button("", () => app.player.toggle(), { class: "play primary" });
  const label = html("output", { class: "step" });
  const speed = html("select", {
    "aria-label": "Speed",
    onchange: () => {
      app.state.speed = Number(speed.value);
    },
  });
  for (const s of [0.25, 0.5, 1, 2, 4]) speed.append(html("option", { value: s }, `${s}×`));
  speed.value = 1;
  const icon = (text, name, action) => button(text, action, { "aria-label": name, title: name, class: "icon" });
  const pin = button("Pin", () => app.togglePin(), {
    title: "Keep this run as a grey ghost behind the next ones",
    class: "toggle",
  });
  const node = html(
    "div",
    { class: "transport", role: "group", "aria-label": "Timeline" },
    play,
    icon("↺", "Reset to step 0", () => app.seek(0)),
    icon("◀", "Step back", () => app.seek(app.state.frame - 1)),
    icon("▶", "Step forward", () => app.seek(app.state.frame + 1)),
    slider,
    label,
    speed,
    app.hidden("pin") ? null : pin,
  );
  const update = () => {
    put(slider, { max: frames(app) - 1 });
    slider.value = app.state.frame;
    const step = `step ${app.film.steps[app.state.frame]} of ${app.film.steps.at(-1)}`;
    put(slider, { "aria-valuetext": step });
    write(label, step);
    write(play, app.player.playing ? "Pause" : "Play");
    write(pin, app.pin ? "Unpin" : "Pin");
    put(pin, { "aria-pressed": String(Boolean(app.pin)) });
  };
  return { node, update };
}

function makePlayer(app) {
  let ticket = 0;
  let last = 0;
  let ahead = 0;
  const player = { playing: false };
  const tick = (now) => {
    ticket = requestAnimationFrame(tick);
    ahead += ((now - last) / 1000) * (frames(app) / WHOLE_FILM) * app.state.speed;
    last = now;
    const whole = Math.floor(ahead);
    if (whole < 1) return;
    ahead -= whole;
    app.state.frame = Math.min(frames(app) - 1, app.state.frame + whole);
    if (app.state.frame === frames(app) - 1) player.pause();
    else app.draw();
  };
  player.play = () => {
    if (player.playing) return;
    if (app.state.frame >= frames(app) - 1) app.state.frame = 0;
    player.playing = true;
    last = performance.now();
    ahead = 0;
    app.draw();
    ticket = requestAnimationFrame(tick);
  };
  player.pause = () => {
    cancelAnimationFrame(ticket);
    player.playing = false;
    app.draw();
    app.settled();
  };
  player.toggle = () => (player.playing ? player.pause() : player.play());
  player.stop = () => cancelAnimationFrame(ticket);
  return player;
}

// -------------------------------------------------------------------------------------------------- predict and reveal

// The method's curve is covered, the reader sketches where it will end, and the film is the answer.
function startPredict(app, method) {
  const values = new Float32Array(app.meta.actions);
  const sketch = svg("path", { class: "sketch" });
  const cursor = svg("g", { class: "handle pencil", role: "slider", tabindex: 0, "aria-label": "Sketch" });
  cursor.append(
    svg("circle", { class: "hit", r: TOUCH }),
    svg("circle", { class: "ring", r: 12 }),
    svg("circle", { class: "knob", r: 5 }),
  );
  const predict = { method, stage: "sketch", values, score: null };
  let at = app.scene.peak;
  let box = null;
  const total = () => values.reduce((a, b) => a + b, 0);
  predict.drawn = () => total() > 0;
  const stroke = (changes) => {
    for (const [a, height] of changes) values[a] = height < 0.01 ? 0 : height;
    if (changes.length) at = changes.at(-1)[0];
    app.draw();
  };
  cursor.addEventListener("keydown", (event) => {
    const by = event.shiftKey ? 5 : 1;
    const sideways = { ArrowLeft: -by, ArrowRight: by, Home: -Infinity, End: Infinity }[event.key];
    const lift = { ArrowUp: 0.05 * by, ArrowDown: -0.05 * by, PageUp: 0.5, PageDown: -0.5 }[event.key];
    if (predict.stage !== "sketch" || (sideways === undefined && lift === undefined)) return;
    event.preventDefault();
    event.stopPropagation();
    if (sideways !== undefined) at = clamp(at + sideways, 0, app.meta.actions - 1);
    stroke([[at, clamp(values[at] + (lift ?? 0), 0, 1)]]);
  });
  predict.attach = (picture) => {
    box = picture.box;
    stroke.box = box;
    const size = { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top };
    const sheet = svg("rect", { class: "sheet", ...size });
    if (predict.stage === "sketch") drawable(sheet, stroke);
    put(picture.node, { role: "group" });
    picture.node.append(sketch, ...(predict.stage === "sketch" ? [sheet, cursor] : []));
  };
  predict.update = () => {
    // While it is sketched only the shape counts; revealed, it is drawn as the probabilities that it stands for.
    const y = predict.stage === "sketch" ? (v) => box.bottom - v * (box.bottom - box.top) : null;
    const scale = app.state.log ? logY(box) : linearY(box, topOf(app));
    const sum = total();
    const path = y
      ? line(values, box.x, y)
      : line(
          values.map((v) => Math.max(-40, Math.log(v / sum))),
          box.x,
          scale,
        );
    put(sketch, { d: area(path, box.x, app.meta.actions, box.bottom) });
    const now = values[at];
    put(cursor, {
      transform: `translate(${px(box.x(at))} ${px(box.bottom - now * (box.bottom - box.top))})`,
      "aria-valuemin": 0,
      "aria-valuemax": 1,
      "aria-valuenow": now.toFixed(2),
      "aria-valuetext": `action ${at}, height ${now.toFixed(2)}; left and right choose the action`,
    });
  };
  predict.reveal = () => {
    const sum = total();
    const end = row(app, app.film, "log_prob", method, frames(app) - 1);
    let distance = 0;
    for (let a = 0; a < values.length; a++) distance += Math.abs(values[a] / sum - Math.exp(end[a])) / 2;
    predict.score = Math.max(0, 100 * (1 - distance));
    predict.stage = "revealed";
  };
  return predict;
}

function makePredict(app) {
  const select = html("select", { "aria-label": "Method to predict" });
  const open = button("Predict first", () => begin(), { title: "Sketch where a method will go, then see" });
  const says = html("span", { class: "says" });
  const score = html("strong", { class: "score", role: "status" });
  const clear = button("Clear", () => begin());
  const reveal = button("Reveal", () => show(), { class: "primary" });
  const done = button("Done", () => leave());
  const node = html("div", { class: "predict" }, open, select, says, clear, reveal, done, score);
  const begin = () => {
    app.player.playing && app.player.pause();
    const method = app.predict || select.value ? app.index.get(select.value) : shownMethods(app)[0];
    app.state.frame = 0;
    app.predict = startPredict(app, method ?? 0);
    app.rebuild();
  };
  const show = () => {
    if (!app.predict.drawn())
      return app.say("Sketch something first: drag in the picture, or use the arrow keys on its dot.");
    app.predict.reveal();
    app.state.frame = app.still() ? frames(app) - 1 : 0;
    app.rebuild();
    if (!app.still()) app.player.play();
    return undefined;
  };
  const leave = () => {
    app.predict = null;
    app.rebuild();
  };
  select.addEventListener("change", () => app.predict && begin());
  app.leavePredict = () => app.predict && leave();
  const update = () => {
    const names = app.state.shown.join();
    if (node.dataset.names !== names) {
      node.dataset.names = names;
      const before = select.value;
      select.replaceChildren(
        ...shownMethods(app).map((m) => html("option", { value: app.meta.methods[m].name }, app.meta.methods[m].label)),
      );
      if (app.state.shown.includes(before)) select.value = before;
    }
    const { predict } = app;
    // The curve over the steps would give the answer away.
    app.root.classList.toggle("sketching", predict?.stage === "sketch");
    for (const part of [clear, reveal, done, says]) part.hidden = !predict;
    open.hidden = Boolean(predict);
    select.hidden = !predict;
    clear.textContent = predict?.stage === "revealed" ? "Try again" : "Clear";
    reveal.hidden = predict?.stage !== "sketch";
    const label = predict ? app.meta.methods[predict.method].label : "";
    write(
      says,
      predict?.stage === "sketch"
        ? `Sketch where ${label} will have its mass after the last step. Only the shape counts.`
        : "",
    );
    const over = predict?.stage === "revealed" && !app.player.playing && app.state.frame === frames(app) - 1;
    write(
      score,
      over ? `Score ${Math.round(predict.score)} of 100: the share of your mass that is where ${label} went.` : "",
    );
  };
  return { node, update };
}

// ------------------------------------------------------------------------------------------------------------- exports

const STYLES = [
  "fill",
  "fill-opacity",
  "stroke",
  "stroke-width",
  "stroke-dasharray",
  "stroke-opacity",
  "stroke-linejoin",
  "opacity",
  "font-family",
  "font-size",
  "font-weight",
  "text-anchor",
  "visibility",
  "paint-order",
];

function inlined(picture) {
  const copy = picture.cloneNode(true);
  const from = [picture, ...picture.querySelectorAll("*")];
  const to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((node, i) => {
    const style = getComputedStyle(node);
    to[i].setAttribute("style", STYLES.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";"));
    to[i].removeAttribute("class");
  });
  for (const extra of from.map((node, i) => (node.matches(".handles, .sheet, .scrub, .handle") ? to[i] : null)))
    extra?.remove();
  for (const title of copy.querySelectorAll("title")) title.remove();
  return copy;
}

// All pictures, the legend and the table where they stand on the page, as one drawing.
function composed(app) {
  const frame = app.figure.getBoundingClientRect();
  const width = Math.ceil(frame.width / 2) * 2;
  const head = Math.round(2.6 * app.em);
  const height = Math.ceil((frame.height + head) / 2) * 2;
  const page = getComputedStyle(app.root);
  const out = svg("svg", {
    xmlns: SVG,
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    "font-family": page.fontFamily,
  });
  out.append(svg("rect", { width, height, fill: page.backgroundColor }));
  const { steps } = app.film;
  const caption = `${app.meta.title}: ${describe(app.scene)}, step ${steps[app.state.frame]} of ${steps.at(-1)}`;
  out.append(svg("text", { x: app.em, y: 1.6 * app.em, "font-size": 1.15 * app.em, fill: page.color }, caption));
  for (const picture of app.figure.querySelectorAll("svg")) {
    const at = picture.getBoundingClientRect();
    if (!at.width) continue;
    const copy = inlined(picture);
    put(copy, { x: px(at.left - frame.left), y: px(at.top - frame.top + head) });
    out.append(copy);
  }
  for (const text of app.figure.querySelectorAll("[data-text], .curve-box select")) {
    const at = text.getBoundingClientRect();
    const content = text.selectedOptions?.[0].label ?? text.textContent;
    if (!at.width || !content) continue;
    const style = getComputedStyle(text);
    const right = style.textAlign === "right" || style.textAlign === "end";
    out.append(
      svg(
        "text",
        {
          x: px(
            (right ? at.right - parseFloat(style.paddingRight) : at.left + parseFloat(style.paddingLeft)) - frame.left,
          ),
          y: px(at.top - frame.top + head + at.height / 2 + 0.35 * parseFloat(style.fontSize)),
          "text-anchor": right ? "end" : "start",
          "font-size": style.fontSize,
          "font-weight": style.fontWeight,
          fill: style.color,
        },
        content,
      ),
    );
  }
  return { xml: new XMLSerializer().serializeToString(out), width, height };
}

async function painted(app, canvas, context) {
  const { xml, width, height } = composed(app);
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(xml);
  await image.decode();
  context.drawImage(image, 0, 0, (width * canvas.height) / height, canvas.height);
}

function canvasFor(app, scale) {
  const { width, height } = composed(app);
  const canvas = html("canvas", { width: width * scale, height: height * scale });
  return { canvas, context: canvas.getContext("2d") };
}

function fileName(app, ending) {
  return `bandit-pft-peak-${app.scene.peak}-step-${app.film.steps[app.state.frame]}.${ending}`;
}

async function savePng(app) {
  const { canvas, context } = canvasFor(app, 2);
  await painted(app, canvas, context);
  download(fileName(app, "png"), await new Promise((resolve) => canvas.toBlob(resolve, "image/png")));
}

async function saveVideo(app) {
  if (!window.MediaRecorder || !MediaRecorder.isTypeSupported("video/webm")) {
    return app.say("This browser cannot record video. Use a recent Chromium, Chrome, Edge or Firefox, or save PNG.");
  }
  app.player.playing && app.player.pause();
  const before = app.state.frame;
  const { canvas, context } = canvasFor(app, 1);
  await painted(app, canvas, context);
  const recorder = new MediaRecorder(canvas.captureStream(30), { mimeType: "video/webm", videoBitsPerSecond: 6e6 });
  const chunks = [];
  recorder.ondataavailable = (event) => chunks.push(event.data);
  const ended = new Promise((resolve) => {
    recorder.onstop = resolve;
  });
  recorder.start();
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  for (let frame = 0; frame < frames(app) && !app.gone; frame++) {
    app.say(`Recording: frame ${frame + 1} of ${frames(app)}`, true);
    app.state.frame = frame;
    app.draw();
    const shown = pause((1000 * WHOLE_FILM) / frames(app) / app.state.speed);
    await painted(app, canvas, context);
    await shown;
  }
  recorder.stop();
  await ended;
  app.say(null);
  app.state.frame = before;
  app.draw();
  return download(`bandit-pft-peak-${app.scene.peak}.webm`, new Blob(chunks, { type: "video/webm" }));
}

function saveCsv(app) {
  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const heads = [
    "method",
    "run",
    "step",
    ...app.meta.numbers.map((n) => n.name),
    ...range(app.meta.actions).map((a) => `log_prob_${a}`),
  ];
  const rows = [heads.join(",")];
  for (const method of shownMethods(app)) {
    for (let frame = 0; frame < frames(app); frame++) {
      const numbers = row(app, app.film, "numbers", method, frame);
      const logs = row(app, app.film, "log_prob", method, frame);
      const start = [
        quoted(app.meta.methods[method].name),
        isSampled(app) ? "sampled" : "exact",
        app.film.steps[frame],
      ];
      rows.push([...start, ...numbers, ...logs].join(","));
    }
  }
  download(fileName(app, "csv"), new Blob([rows.join("\n") + "\n"], { type: "text/csv" }));
}

// A scene as a Python literal; JSON differs from it in three words.
function python(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object")
    return `{${Object.entries(value)
      .map(([k, v]) => `${JSON.stringify(k)}: ${python(v)}`)
      .join(", ")}}`;
  return JSON.stringify(value);
}

function asPython(app) {
  const words = {
    scene: python(app.scene),
    methods: python(app.state.shown),
    step: String(app.film.steps[app.state.frame]),
  };
  return app.meta.python.replace(/\{\{(scene|methods|step)\}\}/g, (_, name) => words[name]);
}

// ------------------------------------------------------------------------------------------------------ tools, dialogs

function showDialog(app, title, ...children) {
  const close = button("Close", () => dialog.close(), { class: "primary" });
  const heading = html("h2", { id: `${app.id}-dialog` }, title);
  const dialog = html("dialog", { "aria-labelledby": `${app.id}-dialog` }, heading, ...children, close);
  dialog.addEventListener("close", () => dialog.remove());
  app.root.append(dialog);
  dialog.showModal();
  return dialog;
}

async function showText(app, title, says, text, extra) {
  const area = html("textarea", { readonly: extra ? null : "", rows: 10, "aria-label": title, spellcheck: "false" });
  area.value = text;
  const told = html("p", { role: "status" }, says);
  showDialog(app, title, told, area, extra ? extra(area) : null);
  area.select();
  try {
    await navigator.clipboard.writeText(text);
    write(told, `${says} It is on the clipboard.`);
  } catch {
    write(told, `${says} Copy it from here: the clipboard is closed to this page.`);
  }
}

const KEYS = [
  ["Space", "play, pause"],
  [", .", "step back, step forward"],
  ["Home End", "first step, last step (on the timeline)"],
  ["arrow keys", "move the handle or timeline that has the focus; Shift: by 5"],
  ["o", "side by side, overlaid"],
  ["l", "probability, log probability"],
  ["a", "one probability axis for all pictures, own axes"],
  ["e", "exact, sampled"],
  ["f", "forces"],
  ["s", "samples"],
  ["p", "pin, unpin"],
  ["m", "presentation mode"],
  ["Esc", "leave presentation or prediction"],
  ["?", "this list"],
];

function showKeys(app) {
  showDialog(
    app,
    "Keys",
    html(
      "dl",
      { class: "keys" },
      ...KEYS.flatMap(([key, text]) => [html("dt", {}, html("kbd", {}, key)), html("dd", {}, text)]),
    ),
  );
}

function shortcuts(app, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("dialog, textarea")) return false;
  const tag = event.target.tagName;
  const pressing = tag === "BUTTON" || tag === "SUMMARY" || event.target.type === "checkbox";
  if (tag === "SELECT") return false;
  const flip = (name, key) => () => !app.hidden(name) && app.set({ [key]: !app.state[key] });
  const actions = {
    " ": pressing ? null : () => app.player.toggle(),
    ",": () => app.seek(app.state.frame - 1),
    ".": () => app.seek(app.state.frame + 1),
    o: () => !app.hidden("view") && app.set({ view: app.state.view === "side" ? "over" : "side" }),
    l: flip("log", "log"),
    a: flip("view", "own"),
    e: flip("sampled", "sampled"),
    f: flip("forces", "forces"),
    s: flip("samples", "samples"),
    p: () => !app.hidden("pin") && app.togglePin(),
    m: () => !app.hidden("present") && app.present(),
    "?": () => showKeys(app),
    Escape: () => (presenting(app) ? app.present() : app.leavePredict?.()),
  };
  const action = actions[event.key];
  if (!action) return false;
  event.preventDefault();
  action();
  return true;
}

function makeTools(app) {
  const guarded = (job) => async () => {
    menu.open = false;
    try {
      await job(app);
    } catch (error) {
      app.say(`That could not be saved: ${error.message}`);
    }
  };
  const saveSvg = () => download(fileName(app, "svg"), new Blob([composed(app).xml], { type: "image/svg+xml" }));
  const menu = html(
    "details",
    { class: "menu" },
    html("summary", {}, "Export"),
    html(
      "div",
      {},
      button("PNG picture", guarded(savePng)),
      button("SVG picture", guarded(saveSvg)),
      button("Video (webm)", guarded(saveVideo)),
      button("CSV numbers", guarded(saveCsv)),
    ),
  );
  const applied = (area) => button("Show this state", () => app.goTo(area.value));
  const share = () =>
    showText(
      app,
      "Link to this state",
      app.source.grid
        ? "This address opens this page as it is now."
        : "This text holds the state; paste one here to show it.",
      app.source.grid ? location.href.split("#")[0] + toHash(app) : toHash(app),
      app.source.grid ? null : applied,
    );
  const theme = button("", () => app.setTheme(app.dark ? "light" : "dark"));
  const present = button("Present", () => app.present(), { title: "Large type for a projector" });
  const parts = [
    ["share", button("Link", share, { title: "Copy a link to this state" })],
    [
      "python",
      button("Copy as Python", () =>
        showText(app, "The same run in Python", "This program makes the same run.", asPython(app)),
      ),
    ],
    ["export", menu],
    ["present", present],
    ["theme", theme],
    ["keys", button("?", () => showKeys(app), { "aria-label": "Keys", title: "Keys" })],
  ];
  for (const [name, part] of parts) put(part, { "data-tool": name });
  const node = html("div", { class: "tools" }, ...parts.filter(([name]) => !app.hidden(name)).map(([, part]) => part));
  const update = () => {
    write(theme, app.dark ? "Light" : "Dark");
    put(present, { "aria-pressed": String(presenting(app)) });
  };
  return { node, update };
}

// Errors and advice, as text, until they are closed or something else is to be said.
function makeNotice(app) {
  const text = html("span");
  const retry = button("Retry", () => {
    app.say(null);
    app.source.again();
    app.refresh("sampled");
  });
  const node = html(
    "div",
    { class: "notice", role: "status", hidden: "" },
    text,
    retry,
    button("Close", () => app.say(null)),
  );
  app.say = (message, quiet = false, again = false) => {
    node.hidden = !message;
    retry.hidden = !again;
    node.classList.toggle("quiet", quiet);
    write(text, message ?? "");
  };
  return { node, update: () => {} };
}

function makeAnnouncer(app) {
  const node = html("p", { class: "spoken", "aria-live": "polite" });
  let timer = 0;
  app.speak = () => {
    clearTimeout(timer);
    timer = setTimeout(
      () => app.film && shownMethods(app).length && write(node, summary(app, shownMethods(app)[0])),
      1000,
    );
  };
  return { node, update: () => {}, stop: () => clearTimeout(timer) };
}

// --------------------------------------------------------------------------------------------------------------- mount

function makeApp(el, source, page) {
  const { meta } = source;
  const id = `bandit-pft-${++widgets}`;
  const root = html("div", {
    class: page ? "bandit-pft page" : "bandit-pft",
    id,
    tabindex: -1,
    "data-lm-suppress-shortcuts": "true",
  });
  const app = {
    id,
    root,
    source,
    meta,
    film: null,
    pin: null,
    predict: null,
    dark: false,
    gone: false,
    hint: { hidden: false },
    index: new Map(meta.methods.map((m, i) => [m.name, i])),
    timings: { drag: [] },
    asked: 0,
    answered: 0,
    hidden: (name) => (meta.hide ?? []).includes(name),
    still: () => matchMedia("(prefers-reduced-motion: reduce)").matches,
  };
  app.limits = (name) => {
    if (name === "peak") return { min: 0, max: meta.actions - 1, step: 1 };
    if (meta.controls?.[name]) return meta.controls[name];
    const widths = source.grid?.flatMap((e) => [e.width, ...(e.second ? [e.second.width] : [])]);
    if (name === "width" && widths) return { min: Math.min(...widths), max: Math.max(...widths), step: 1 };
    if (name === "height")
      return source.grid ? { min: 0, max: Math.max(1, meta.scene.height), step: 0.05 } : { min: 0, max: 2, step: 0.05 };
    return { min: 1, max: Math.max(1, Math.floor(meta.actions / 3)), step: 1 };
  };
  app.scene = { ...meta.scene };
  const shown = (meta.shown ?? []).filter((n) => app.index.has(n));
  app.state = {
    shown: shown.length ? shown : meta.methods.slice(0, 4).map((m) => m.name),
    frame: 0, // The question comes before the answer.
    view: "side",
    log: false,
    own: false,
    forces: !app.hidden("forces"),
    samples: false,
    sampled: false,
    speed: 1,
  };
  el.append(root);
  return app;
}

// What the reader can do, each in one place.
function giveActions(app) {
  const { meta, source, state } = app;
  app.draw = () => {
    if (!app.film || app.gone) return;
    state.frame = clamp(state.frame, 0, frames(app) - 1);
    for (const part of app.parts) part.update();
    app.remember();
    if (!app.player.playing) app.speak();
  };
  app.rebuild = () => {
    app.em = parseFloat(getComputedStyle(app.root).fontSize);
    // Without a place on a page there is no size; the observer calls again once there is one.
    if (!app.film || app.gone || !app.root.isConnected) return;
    for (const part of app.parts) part.build?.();
    app.draw();
  };
  app.refresh = async (want, begun = null) => {
    const mine = ++app.asked;
    try {
      const film = await source.film(app.scene, want);
      if (!film || app.gone || mine < app.answered) return;
      app.answered = mine;
      if (app.refused) app.say(null);
      app.refused = false;
      const first = !app.film;
      const step = app.film?.steps[state.frame];
      app.film = film;
      // The same step stays in view where the new film has it.
      if (!first && film.steps[state.frame] !== step) state.frame = frameAt(film, step);
      if (first && !app.opening) app.rebuild();
      else if (!first) app.draw();
      if (begun !== null) app.timings.drag.push(performance.now() - begun);
    } catch (error) {
      if (app.gone) return;
      if (!app.film && !error.told) throw error;
      app.say(error.message);
      app.refused = true;
    }
  };
  app.change = (partial, settled) => {
    const begun = performance.now();
    const changed = !same({ ...app.scene, ...partial }, app.scene);
    app.scene = { ...app.scene, ...partial };
    if (!changed && source.grid) return Promise.resolve();
    if (app.film && !source.grid) app.draw(); // The handle follows the hand while the kernel works.
    if (app.predict?.stage === "revealed") app.leavePredict();
    return app.refresh(settled ? "sampled" : "exact", begun);
  };
  app.settled = () => app.speak();
  app.seek = (frame) => {
    if (app.player.playing) app.player.pause();
    state.frame = clamp(frame, 0, frames(app) - 1);
    app.draw();
  };
  app.set = (partial) => {
    // The dots are the sampled run's group: asking for them asks for that run.
    if (partial.samples && !state.sampled) partial = { ...partial, sampled: true };
    if (partial.sampled && !state.samples && !app.hidden("samples")) partial = { ...partial, samples: true };
    if (partial.sampled === false) partial = { ...partial, samples: false };
    Object.assign(state, partial);
    app.rebuild();
    if (state.sampled && app.film && !hasSampled(app)) app.refresh("sampled");
  };
  app.toggleMethod = (name) => {
    const names = state.shown.includes(name) ? state.shown.filter((n) => n !== name) : [...state.shown, name];
    app.leavePredict?.();
    app.set({ shown: meta.methods.map((m) => m.name).filter((n) => names.includes(n)) });
  };
  app.togglePin = () => {
    app.pin = app.pin ? null : { film: app.film, scene: app.scene };
    app.draw();
  };
  app.preset = async (preset) => {
    app.leavePredict?.();
    const { scene, problems } = valid(app, preset.scene);
    app.say(problems.length ? problems.join(" ") : null);
    if (app.player.playing) app.player.pause();
    await app.change(scene, true);
    // A preset asks something: it waits at its start, so that there is time to answer.
    state.frame = 0;
    app.draw();
  };
  app.chooseReference = (name) => {
    if (name !== "drawn") return app.change({ reference: name }, true);
    const now = Array.from(app.film.arrays.ref_log_prob, (v) =>
      Number(Math.max(v, PENCIL_FLOOR * Math.LN10).toFixed(3)),
    );
    return app.change({ reference: now }, true);
  };
  const otherSecond = () => {
    if (app.scene.second) return null;
    if (!source.grid) {
      const far = (app.scene.peak + Math.round(meta.actions / 2)) % meta.actions;
      return { peak: far, width: app.scene.width, height: 0.6 * app.scene.height };
    }
    return source.grid.find((e) => e.second && source.has({ ...app.scene, second: e.second }))?.second;
  };
  app.secondLock = () => {
    const there = source.has({ ...app.scene, second: otherSecond() ?? null }) && otherSecond() !== undefined;
    if (there) return null;
    const which = app.scene.second ? "without" : "with";
    return `This page has no runs ${which} a second peak for this width and reference. In a notebook it can be had.`;
  };
  app.toggleSecond = () => {
    const locked = app.secondLock();
    return locked ? app.say(locked) : app.change({ second: otherSecond() }, true);
  };
  app.present = () => {
    const on = app.root.classList.toggle("present");
    // Full screen where the page may ask for it; the large type does not depend on it.
    if (on) app.root.requestFullscreen?.().catch(() => {});
    else if (document.fullscreenElement === app.root) document.exitFullscreen();
    app.rebuild();
  };
  app.setTheme = (theme) => {
    app.dark = theme === "dark";
    app.root.dataset.theme = theme;
    const { style } = app.root;
    const shade = app.dark ? onDark : (hex) => hex;
    meta.methods.forEach((m, i) => style.setProperty(`--m${i}`, shade(m.colour)));
    style.setProperty("--gold", meta.style.reward.colour);
    style.setProperty("--gold-edge", app.dark ? meta.style.reward.colour : meta.style.reward.edge);
    style.setProperty("--reference", shade(meta.style.reference.colour));
    style.setProperty("--optimum", shade(meta.style.optimum.colour));
    if (app.root.classList.contains("page"))
      document.body.style.cssText = `margin: 0; background: ${app.dark ? DARK : "#FFF"}`;
    if (app.film) app.draw();
  };
  let timer = 0;
  app.remember = () => {
    if (!source.grid || app.hidden("share") || timer) return;
    timer = setTimeout(() => {
      timer = 0;
      if (!app.gone) history.replaceState(null, "", toHash(app));
    }, 300); // Browsers refuse addresses that change at every frame.
  };
  app.goTo = async (text) => {
    const { scene, state: wanted, problems } = fromHash(app, text);
    const { step = 0, ...rest } = wanted;
    Object.assign(state, rest);
    app.scene = scene;
    if (problems.length) app.say(problems.join(" "));
    app.opening = true;
    await app.refresh("sampled");
    app.opening = false;
    if (!app.film) return;
    state.frame = frameAt(app.film, step);
    if (Number.isFinite(step) && step > app.film.steps.at(-1)) {
      app.say([...problems, `Step ${step} is beyond the last, ${app.film.steps.at(-1)}; the last is shown.`].join(" "));
    }
    app.rebuild();
  };
}

function frameAt(film, step) {
  const later = film.steps.findIndex((s) => s >= step);
  return later < 0 ? film.steps.length - 1 : later;
}

function lay(app) {
  const show = (name, make) => (app.hidden(name) ? null : make(app));
  const notice = makeNotice(app);
  const announcer = makeAnnouncer(app);
  app.player = makePlayer(app);
  const parts = {
    tools: makeTools(app),
    presets: show("presets", makePresets),
    settings: makeSettings(app),
    world: makeWorld(app),
    switches: makeSwitches(app),
    pictures: makePictures(app),
    legend: makeLegend(app),
    curve: show("curve", makeCurve),
    methods: show("methods", makeMethods),
    transport: show("timeline", makeTransport),
    predict: show("predict", makePredict),
    numbers: show("numbers", makeNumbers),
    notice,
    announcer,
  };
  app.parts = Object.values(parts).filter(Boolean);
  app.announcer = announcer;
  const node = (name) => parts[name]?.node ?? null;
  app.figure = html(
    "div",
    { class: "figure" },
    html(
      "div",
      { class: "stage" },
      node("world"),
      html("div", { class: "bar" }, node("switches"), node("predict")),
      node("pictures"),
      node("legend"),
      node("transport"),
    ),
    html("div", { class: "side" }, node("methods"), node("curve"), node("settings")),
    node("numbers"),
  );
  app.root.append(
    html("header", {}, html("h1", {}, app.meta.title), node("tools")),
    node("presets"),
    notice.node,
    app.figure,
    announcer.node,
  );
}

// Where the page's own theme is known (JupyterLab tells it), it counts before the system's.
function preferredTheme(media) {
  const lab = document.body.dataset.jpThemeLight;
  return (lab ? lab === "false" : media.matches) ? "dark" : "light";
}

export function mount(el, source, page = false) {
  const app = makeApp(el, source, page);
  giveActions(app);
  lay(app);
  const media = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => app.setTheme(preferredTheme(media));
  media.addEventListener("change", follow);
  follow();
  app.root.addEventListener("keydown", (event) => {
    shortcuts(app, event);
    // A notebook has shortcuts of its own on plain keys, deleting cells among them.
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
  // On a page of its own keys count before anything was clicked too; of several explorers the first answers.
  const unfocused = (event) => {
    const nowhere = event.target === document.body || event.target === document.documentElement;
    if (nowhere && !event.defaultPrevented && !document.querySelector("dialog[open]")) shortcuts(app, event);
  };
  if (page) document.addEventListener("keydown", unfocused);
  const unfold = () => {
    if (document.fullscreenElement || !presenting(app) || !app.wasFull) return;
    app.present(); // Escape left the full screen; leave the large type too.
  };
  const full = () => {
    unfold();
    app.wasFull = document.fullscreenElement === app.root;
  };
  app.root.addEventListener("fullscreenchange", full);
  let size = "";
  const observer = new ResizeObserver(() => {
    // On a page only the width counts: the height follows from what is drawn.
    const now = `${app.root.clientWidth} ${presenting(app) && app.root.clientHeight}`;
    if (now === size) return;
    size = now;
    app.rebuild();
  });
  observer.observe(app.root);
  source.onsilent = (text) => app.say(text, false, true);
  const ready = start(app);
  const handle = {
    state: () => ({
      ...app.state,
      shown: [...app.state.shown],
      scene: app.scene,
      step: app.film?.steps[app.state.frame],
      hash: toHash(app),
    }),
    meta: app.meta,
    film: () => app.film,
    setScene: (partial) => app.change(partial, true),
    ready,
    timings: app.timings,
    destroy: () => {
      app.gone = true;
      app.player.stop();
      app.announcer.stop();
      observer.disconnect();
      media.removeEventListener("change", follow);
      document.removeEventListener("keydown", unfocused);
      source.close();
      app.root.remove();
    },
  };
  return handle;
}

async function start(app) {
  app.em = parseFloat(getComputedStyle(app.root).fontSize);
  const text = app.source.grid && !app.hidden("share") ? location.hash : "";
  await (text.length > 1 ? app.goTo(text) : app.refresh("sampled"));
  const idle = (job) => (window.requestIdleCallback ? requestIdleCallback(job) : setTimeout(job, 200));
  const unreadable = (error) => damaged(app.root, error);
  const ahead = () => app.gone || app.source.prepare((load) => idle(() => app.gone || load().then(ahead, unreadable)));
  ahead();
}

// --------------------------------------------------------------------------------------------------------------- hosts

function damaged(el, error) {
  const advice = "The file is damaged or incomplete; please export it again.";
  const text = `The data of this page cannot be read: ${error.message}. ${advice}`;
  el.replaceChildren(
    html(
      "div",
      { class: "bandit-pft failed", "data-theme": "light", role: "alert" },
      html("h1", {}, "This page is damaged"),
      html("p", {}, text),
    ),
  );
}

function checked(data) {
  if (!data || typeof data !== "object" || !data.meta || !Array.isArray(data.shards))
    throw new Error("it holds no runs");
  if (data.meta.format !== 1) throw new Error(`its format is ${data.meta.format}, and this page reads format 1`);
  for (const key of ["methods", "numbers", "references", "presets", "grid"]) {
    if (!Array.isArray(data.meta[key])) throw new Error(`“${key}” is missing`);
  }
  return data;
}

// For an exported file. Without `data` they are read from the page, so that damage there is reported too.
export function boot(el, data) {
  if (!window.DecompressionStream) {
    const says =
      "This browser is too old to unpack the runs: it has no DecompressionStream. " +
      "Use Chrome or Edge 80, Firefox 113, Safari 16.4, or newer.";
    el.replaceChildren(
      html("div", { class: "bandit-pft failed", "data-theme": "light", role: "alert" }, html("p", {}, says)),
    );
    return null;
  }
  try {
    const read = data ?? JSON.parse(document.getElementById("bandit-pft-data").textContent);
    const handle = mount(el, fileSource(checked(typeof read === "string" ? JSON.parse(read) : read)), true);
    handle.ready.catch((error) => {
      handle.destroy();
      damaged(el, error);
    });
    window.bandit_pft_explorer = handle;
    return handle;
  } catch (error) {
    damaged(el, error);
    return null;
  }
}

function render({ model, el }) {
  const handle = mount(el, liveSource(model));
  window.bandit_pft_explorer = handle;
  handle.ready.catch((error) => damaged(el, error));
  return () => handle.destroy();
}

export default { render };
