// Three planes of a case on canvases: grey slices, labels as fill and outline, attention, and lines where the others cut.

const PLAIN = 7; // structures that are filled without a hatching: of more, not everybody tells the colours apart
const AXIS_OF = { axial: 2, coronal: 1, sagittal: 0 };
const STACKED_BELOW = 760; // CSS pixels of room under which the planes stand below each other
const SWATCH = 18; // CSS pixels
const SCALE_BARS_MM = [100, 50, 20, 10, 5];

async function decoded(one) {
  const preview = await previewOf(one);
  if (!preview) return null;
  const [image, labels, truth, ...attention] = await Promise.all([
    picture(preview.image),
    pixelLabels(preview.labels, preview.layout.bits),
    preview.truth && pixelLabels(preview.truth, preview.layout.bits),
    ...preview.attention.map(picture),
  ]);
  const width = preview.layout.planes.reduce((sum, plane) => sum + plane.width, 0);
  return { ...preview.layout, image, attention, labels, truth, width };
}

async function picture(base64) {
  const image = new Image();
  image.src = `data:image/webp;base64,${base64}`;
  await image.decode();
  return image;
}

async function pixelLabels(base64, bits) {
  const bytes = Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const inflated = await new Response(stream).arrayBuffer();
  return bits === 8 ? new Uint8Array(inflated) : new Uint16Array(inflated);
}

// Return the label of each pixel of an enlarged slice: of the four nearest, the one that weighs most.
function enlarged(preview, labels, plane, slice, width, height, isShown) {
  const across = nearest(plane.width, width);
  const down = nearest(plane.height, height);
  const result = new Uint16Array(width * height);
  for (let y = 0; y < height; y++) {
    const upper = (slice * plane.height + down.low[y]) * preview.width + plane.x;
    const lower = (slice * plane.height + down.high[y]) * preview.width + plane.x;
    for (let x = 0; x < width; x++) {
      const a = labels[upper + across.low[x]], b = labels[upper + across.high[x]];
      const c = labels[lower + across.low[x]], d = labels[lower + across.high[x]];
      const value = a === b && a === c && a === d ? a : heaviest(a, b, c, d, across.share[x], down.share[y]);
      if (value && isShown[value]) result[y * width + x] = value;
    }
  }
  return result;
}

function heaviest(a, b, c, d, right, down) {
  const values = [a, b, c, d];
  const weights = [(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down];
  let best = a, most = -1;
  for (const value of values) {
    let sum = 0;
    for (let i = 0; i < 4; i++) if (values[i] === value) sum += weights[i];
    if (sum > most) [best, most] = [value, sum];
  }
  return best;
}

function nearest(cells, pixels) {
  const low = new Int32Array(pixels), high = new Int32Array(pixels), share = new Float32Array(pixels);
  for (let i = 0; i < pixels; i++) {
    const at = Math.min(Math.max(((i + 0.5) * cells) / pixels - 0.5, 0), cells - 1);
    low[i] = Math.floor(at);
    high[i] = Math.min(low[i] + 1, cells - 1);
    share[i] = at - low[i];
  }
  return { low, high, share };
}

// Structures after the seventh have a hatching of their fill besides their colour.
function hatched(value, x, y, step) {
  const kind = Math.floor((value - 1) / PLAIN) % 4;
  if (kind === 1) return ((x + y) / step) % 2 < 1;
  if (kind === 2) return ((x - y + (1 << 16) * step) / step) % 2 < 1;
  if (kind === 3) return (x / step) % 2 < 1 !== (y / step) % 2 < 1;
  return true;
}

function overlay(labels, width, height, look, pixelRatio) {
  const image = new ImageData(width, height);
  const reach = Math.round(2 * pixelRatio);
  const step = 3 * pixelRatio;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      const value = labels[at];
      if (!value) continue;
      const isEdge = endsNear(labels, width, height, x, y, reach);
      const [red, green, blue] = look.colours[value - 1];
      const fill = hatched(value, x, y, step) ? look.opacity : 0.15 * look.opacity;
      image.data.set([red, green, blue, Math.round(255 * (look.outline && isEdge ? 1 : fill))], 4 * at);
    }
  }
  return canvasOf(image);
}

function endsNear(labels, width, height, x, y, reach) {
  const at = y * width + x;
  const value = labels[at];
  return (
    (x >= reach && labels[at - reach] !== value) || (x + reach < width && labels[at + reach] !== value) ||
    (y >= reach && labels[at - reach * width] !== value) || (y + reach < height && labels[at + reach * width] !== value)
  );
}

// The outline of the true labels: dashes of white and of the structure's colour, which no outline of found ones has.
function trueOutline(labels, width, height, pixelRatio, colours) {
  const image = new ImageData(width, height);
  const reach = Math.round(1.5 * pixelRatio);
  const dash = 5 * pixelRatio;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = labels[y * width + x];
      if (!value || !endsNear(labels, width, height, x, y, reach)) continue;
      const colour = ((x + y) / dash) % 2 < 1 !== ((x - y + (1 << 16) * dash) / dash) % 2 < 1 ? colours[value - 1] : [255, 255, 255];
      image.data.set([...colour, 255], 4 * (y * width + x));
    }
  }
  return canvasOf(image);
}

function canvasOf(image) {
  const canvas = el("canvas", { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// The attention of a gate in a slice, from none (clear) over violet and orange to all (yellow), brighter with each step.
function heat(attention, plane, slice) {
  const canvas = el("canvas", { width: plane.width, height: plane.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(attention, plane.x, slice * plane.height, plane.width, plane.height, 0, 0, plane.width, plane.height);
  const image = context.getImageData(0, 0, plane.width, plane.height);
  for (let at = 0; at < image.data.length; at += 4) image.data.set(heatColour(image.data[at] / 255), at);
  return canvasOf(image);
}

function heatColour(share) {
  return [Math.min(255, 90 + 330 * share), Math.max(0, 300 * share - 60), Math.max(0, 150 - 260 * share), 200 * share];
}

// What the colours of attention mean, from 0 to 1.
function heatScale() {
  const image = new ImageData(100, 1);
  for (let x = 0; x < image.width; x++) image.data.set(heatColour(x / (image.width - 1)), 4 * x);
  return el("span", { class: "heat-scale" }, "0 ", canvasOf(image), " 1");
}

class Planes {
  constructor(preview, look, room) {
    this.preview = preview;
    this.look = look;
    this.isShown = [false, ...preview.names.map(() => true)];
    this.views = preview.planes.map((plane) => this.view(plane));
    const narrowest = Math.min(...preview.planes.map((plane) => plane.size_mm[0]));
    this.barMm = preview.is_picture ? null : (SCALE_BARS_MM.find((one) => one < narrowest / 2.5) ?? 1);
    this.activate(this.views[0]);
    this.element = el("div", { class: "planes" }, ...this.views.map((view) => view.figure));
    this.resizing = new ResizeObserver(() => this.fit());
    this.resizing.observe(room);
  }

  view(plane) {
    const view = { plane, slice: plane.start };
    const sides = plane.edges ? ["left", "right", "upper", "lower"] : []; // a picture shows none of a patient
    const letters = sides.map((side, at) => el("span", { class: side, "aria-hidden": "true" }, plane.edges[at]));
    view.canvas = el("canvas", { role: "img" });
    view.caption = el("span", {});
    view.name = this.preview.is_picture ? "picture" : plane.name;
    view.slider = el("input", { type: "range", min: 0, max: plane.cells.length - 1, value: view.slice, "aria-label": `${plane.name} slice` });
    view.slider.hidden = plane.cells.length === 1;
    view.slider.addEventListener("input", () => this.show(view, Number(view.slider.value)));
    view.slider.addEventListener("focus", () => this.activate(view));
    const stage = el("div", { class: "stage" }, view.canvas, ...letters);
    stage.addEventListener("wheel", (event) => this.wheel(event, view), { passive: false });
    stage.addEventListener("pointerenter", () => this.activate(view));
    stage.addEventListener("click", (event) => this.meet(view, event));
    view.figure = el("figure", {}, el("figcaption", {}, el("b", {}, view.name), view.caption), stage, view.slider);
    return view;
  }

  activate(view) {
    this.active = view;
    for (const one of this.views) one.figure.classList.toggle("active", one === view);
  }

  wheel(event, view) {
    event.preventDefault();
    this.activate(view);
    this.step(Math.sign(event.deltaY));
  }

  step(by) {
    this.show(this.active, this.active.slice + by);
  }

  show(view, slice) {
    view.slice = Math.min(Math.max(slice, 0), view.plane.cells.length - 1);
    this.draw();
  }

  // Bring the other planes to the slices nearest to a point.
  meet(view, event) {
    const box = view.canvas.getBoundingClientRect();
    const [across, down] = [0, 1, 2].filter((axis) => axis !== AXIS_OF[view.plane.name]);
    const shares = { [across]: 1 - (event.clientX - box.left) / box.width, [down]: 1 - (event.clientY - box.top) / box.height };
    for (const other of this.views.filter((one) => one !== view)) {
      const cell = shares[AXIS_OF[other.plane.name]] * other.plane.shown - 0.5;
      const distances = other.plane.cells.map((one) => Math.abs(one - cell));
      other.slice = distances.indexOf(Math.min(...distances));
    }
    this.draw();
  }

  fit() {
    const room = this.element.clientWidth;
    const tallest = Math.max(280, (this.views.length > 1 ? 0.56 : 0.68) * window.innerHeight);
    const widths = this.views.map((view) => view.plane.size_mm[0]);
    const isStacked = room < STACKED_BELOW;
    const wide = isStacked ? Math.max(...widths) : widths.reduce((sum, width) => sum + width, 0);
    const free = isStacked ? room : room - 16 * (widths.length - 1);
    const pixelsPerMm = Math.min(free / wide, tallest / Math.max(...this.views.map((view) => view.plane.size_mm[1])));
    for (const view of this.views) {
      const [width, height] = view.plane.size_mm.map((mm) => Math.max(1, Math.floor(mm * pixelsPerMm)));
      view.canvas.style.width = view.figure.style.width = `${width}px`;
      view.canvas.style.height = `${height}px`;
      view.canvas.width = Math.round(width * devicePixelRatio);
      view.canvas.height = Math.round(height * devicePixelRatio);
    }
    this.draw();
  }

  draw() {
    for (const view of this.views) if (view.canvas.style.width) this.drawOne(view);
  }

  drawOne(view) {
    const { plane, slice, canvas } = view;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.preview.image, plane.x, slice * plane.height, plane.width, plane.height, 0, 0, canvas.width, canvas.height);
    const attention = this.look.attention ? this.preview.attention[this.look.gate] : undefined;
    if (attention) context.drawImage(heat(attention, plane, slice), 0, 0, canvas.width, canvas.height);
    let found = [];
    if (this.look.overlay) {
      const labels = enlarged(this.preview, this.preview.labels, plane, slice, canvas.width, canvas.height, this.isShown);
      const bare = attention ? { opacity: 0, outline: true } : {}; // a fill would change the colours of attention
      const look = { ...this.look, ...bare, colours: this.preview.colours };
      context.drawImage(overlay(labels, canvas.width, canvas.height, look, devicePixelRatio), 0, 0);
      found = numbered(context, labels, this.look.numbers);
    }
    if (this.look.truth && this.preview.truth) {
      const labels = enlarged(this.preview, this.preview.truth, plane, slice, canvas.width, canvas.height, this.isShown);
      context.drawImage(trueOutline(labels, canvas.width, canvas.height, devicePixelRatio, this.preview.colours), 0, 0);
    }
    if (this.look.lines) this.drawLines(view, context);
    if (this.barMm !== null) drawScaleBar(context, plane, this.barMm);
    const text = this.placeOf(view);
    view.caption.textContent = text;
    view.slider.value = slice;
    view.slider.setAttribute("aria-valuetext", text);
    const names = found.map((value) => this.preview.names[value - 1]);
    const hot = attention ? `, attention of gate ${this.preview.gates[this.look.gate]}` : "";
    canvas.setAttribute("aria-label", `${view.name}${text && ` ${text}`}${names.length ? `, with ${names.join(", ")}` : ""}${hot}`);
  }

  placeOf({ plane, slice }) {
    return this.preview.is_picture ? "" : `slice ${plane.source[slice]} of ${plane.source_slices}`;
  }

  drawLines(view, context) {
    const { width, height } = context.canvas;
    const across = [0, 1, 2].find((axis) => axis !== AXIS_OF[view.plane.name]);
    context.strokeStyle = "rgb(255 255 255 / 45%)";
    context.setLineDash([4 * devicePixelRatio, 5 * devicePixelRatio]);
    context.lineWidth = devicePixelRatio;
    context.beginPath();
    for (const { plane, slice } of this.views.filter((one) => one !== view)) {
      const share = 1 - (plane.cells[slice] + 0.5) / plane.shown;
      if (AXIS_OF[plane.name] === across) context.moveTo(share * width, 0), context.lineTo(share * width, height);
      else context.moveTo(0, share * height), context.lineTo(width, share * height);
    }
    context.stroke();
    context.setLineDash([]);
  }
}

// Write the number of each structure in the middle of its widest row; return the structures that are there.
function numbered(context, labels, isWritten) {
  const { width, height } = context.canvas;
  const widest = new Map();
  for (let y = 0; y < height; y++) {
    for (let x = 0, start = 0; x < width; x++) {
      const value = labels[y * width + x];
      if (x === 0 || labels[y * width + x - 1] !== value) start = x;
      const known = widest.get(value);
      if (value && (!known || x - start > known.length)) widest.set(value, { length: x - start, x: (x + start) / 2, y });
    }
  }
  if (isWritten) {
    context.font = `600 ${12 * devicePixelRatio}px "Liberation Sans", Arial, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [value, { x, y }] of widest) written(context, String(value), x, y);
  }
  return [...widest.keys()].sort((a, b) => a - b);
}

function written(context, text, x, y) {
  context.lineWidth = 3 * devicePixelRatio;
  context.lineJoin = "round";
  context.strokeStyle = "#000";
  context.strokeText(text, x, y);
  context.fillStyle = "#fff";
  context.fillText(text, x, y);
}

function drawScaleBar(context, plane, mm) {
  const { width, height } = context.canvas;
  const length = (mm / plane.size_mm[0]) * width;
  const [x, y] = [10 * devicePixelRatio, height - 10 * devicePixelRatio];
  for (const [colour, thickness] of [["#000", 4], ["#fff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness * devicePixelRatio;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + length, y);
    context.stroke();
  }
  context.font = `${11 * devicePixelRatio}px "Liberation Sans", Arial, sans-serif`;
  context.textAlign = "left";
  context.textBaseline = "bottom";
  written(context, mm >= 10 ? `${mm / 10} cm` : `${mm} mm`, x, y - 4 * devicePixelRatio);
}

function swatch(value, colours) {
  const pixels = Math.round(SWATCH * devicePixelRatio);
  const labels = new Uint16Array(pixels * pixels).fill(value);
  const canvas = overlay(labels, pixels, pixels, { opacity: 0.9, outline: false, colours }, devicePixelRatio);
  canvas.style.width = canvas.style.height = `${SWATCH}px`;
  canvas.style.backgroundColor = "#20262c";
  return canvas;
}
