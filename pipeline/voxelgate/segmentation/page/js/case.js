// The view of one case: what to think of it, its three planes, its volumes among those of all cases, and its files.

const LOOK = { overlay: true, outline: true, opacity: 0.3, numbers: true, lines: false, truth: true, attention: false, gate: 0 };
const OPACITY_STEP = 0.1;
let planes = null; // of the case that is shown
let shownCase = null;

const TOOLS = [
  ["overlay", "o", "Overlay"],
  ["outline", "l", "Outlines"],
  ["numbers", "n", "Numbers"],
  ["lines", "c", "Where the others cut"],
  ["truth", "t", "True labels"],
  ["attention", "a", "Attention"],
];

async function showCase(one) {
  closeCase();
  shownCase = one;
  const film = el("div", { class: "film" }, el("p", { class: "empty-film" }, "Opening the pictures …"));
  const section = byId("case");
  section.replaceChildren(heading(one), reasons(one), film, below(one, null));
  section.querySelector("h1").focus({ preventScroll: true });
  window.scrollTo(0, 0);
  let fault = null;
  const preview = await decoded(one).catch((error) => void (fault = error));
  if (shownCase !== one) return; // another case was opened meanwhile
  if (!preview) {
    film.replaceChildren(el("p", { class: "empty-film" }, ...withoutPreview(one, fault)));
    return;
  }
  planes = new Planes(preview, LOOK, film);
  film.replaceChildren(planes.element, tools(preview));
  section.lastElementChild.replaceWith(below(one, preview));
  planes.fit();
}

function closeCase() {
  planes?.resizing.disconnect();
  planes = null;
  shownCase = null;
}

function withoutPreview(one, fault) {
  if (one.status !== "done") return ["There is no result to show."];
  if (one.preview === null) return ["No preview was written for this case."];
  if (one.preview.startsWith("./")) return ["One file cannot hold all previews: ", el("a", { href: one.preview }, "open the pictures of this case"), "."];
  if (fault === MISSING) return [`The folder ${decodeURIComponent(FACTS.folder.slice(2))} with the pictures is not beside this page; copy it there, or make the report again.`];
  return ["The preview of this case is damaged; segment the case again."];
}

function heading(one) {
  const order = currentOrder();
  const position = order.indexOf(one);
  const button = (text, key, step) =>
    el("button", { type: "button", "aria-keyshortcuts": key, disabled: !order[position + step], onclick: () => openNeighbour(step) }, `${text} `, el("kbd", {}, key));
  return el(
    "div",
    { class: "case-head" },
    el("button", { type: "button", "aria-keyshortcuts": "Escape", onclick: openList }, "All cases ", el("kbd", {}, "Esc")),
    el("h1", { tabindex: -1 }, one.id),
    outcome(one.outcome),
    el("nav", { "aria-label": "Other cases" }, position < 0 ? null : el("small", {}, `${(position + 1).toLocaleString("en")} of ${order.length.toLocaleString("en")}`), button("Previous", "k", -1), button("Next", "j", 1)),
  );
}

function reasons(one) {
  return el("ul", { class: "reasons", "aria-label": "Reasons" }, ...one.reasons.map((reason) => el("li", {}, reason)));
}

function tools(preview) {
  const isAbsent = { attention: !preview.attention.length, truth: !preview.truth, lines: preview.planes.length === 1 };
  const checks = TOOLS.filter(([name]) => !isAbsent[name]).map(([name, key, text]) => {
    const input = el("input", { type: "checkbox", id: `tool-${name}`, checked: LOOK[name], onchange: () => setLook(name, input.checked) });
    return el("label", {}, input, `${text} `, el("kbd", {}, key));
  });
  const opacity = el("input", { type: "range", id: "tool-opacity", min: 0, max: 1, step: OPACITY_STEP, value: LOOK.opacity, oninput: () => setLook("opacity", Number(opacity.value)) });
  const [low, high] = preview.window.map((value) => Number(value.toPrecision(3)));
  const window = `reduced copy of the image, ${low} to ${high}${preview.is_hu ? " HU" : ""}`;
  return el("div", { class: "tools" }, ...checks, gateChoice(preview), el("label", {}, "Fill ", opacity, el("kbd", {}, "["), el("kbd", {}, "]")), el("span", { class: "window" }, window));
}

// Which gate's attention is shown; the finest first, as in the report.
function gateChoice(preview) {
  if (!preview.attention.length) return null;
  LOOK.gate %= preview.attention.length;
  const options = preview.gates.map((level, at) => el("option", { value: at, selected: at === LOOK.gate }, `gate ${level}`));
  const choice = el("select", { id: "tool-gate", "aria-label": "Gate", "aria-keyshortcuts": "g", onchange: () => chooseGate(Number(choice.value)) }, ...options);
  return el("label", { class: "gate" }, "of ", choice, " ", el("kbd", {}, "g"), heatScale());
}

// Whoever chooses a gate wants to see it.
function chooseGate(at) {
  const choice = byId("tool-gate");
  if (!choice) return;
  setLook("gate", at % choice.options.length);
  setLook("attention", true);
}

function setLook(name, value) {
  LOOK[name] = value;
  const input = byId(`tool-${name}`);
  if (input?.type === "checkbox") input.checked = value;
  else if (input) input.value = value;
  planes?.draw();
}

function changeOpacity(by) {
  setLook("opacity", Math.min(1, Math.max(0, LOOK.opacity + by)));
}

function below(one, preview) {
  return el(
    "div",
    { class: "below" },
    el("section", { class: "panel", "aria-label": `${MEASURE}s` }, el("h2", {}, `${MEASURE === "area" ? "Areas" : "Volumes"} among all cases of this report`), volumes(one, preview)),
    el("div", { class: "side" }, gates(one), findings(one), files(one), technical(one)),
  );
}

function volumes(one, preview) {
  const positions = STRUCTURES.map((_, position) => position).filter((position) => one.volumes[position] !== null);
  if (!positions.length) return el("p", { class: "faint" }, `No ${MEASURE}s were measured.`);
  const head = el("tr", {}, el("th", { scope: "col" }, "Structure"), el("th", { scope: "col", class: "number" }, UNIT), ...(one.foretold ? [el("th", { scope: "col", class: "number" }, "Predicted Dice")] : []), ...(one.truth ? [el("th", { scope: "col", class: "number" }, "Dice"), el("th", { scope: "col", class: "number" }, `HD95, ${UNIT === "px" ? "px" : "mm"}`)] : []), el("th", { scope: "col" }, "Place among all cases"));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...positions.map((position) => structureRow(one, position, preview))));
}

function structureRow(one, position, preview) {
  const name = STRUCTURES[position];
  const value = preview ? preview.names.indexOf(name) + 1 : 0;
  const volume = one.volumes[position];
  const title = value ? [shownCheck(value, name), swatch(value, preview.colours), `${value} ${name}`] : [name];
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, el("span", { class: "structure" }, ...title)),
    el("td", { class: "number" }, size(volume), remark(position, volume)),
    ...foretoldCells(one, position),
    ...trueCells(one, position),
    el("td", { class: "place" }, SPREADS[position].sorted.length ? stripPlot(position, volume > 0 ? volume : null) : null),
  );
}

function foretoldCells(one, position) {
  if (!one.foretold) return [];
  const interval = one.foretold.structures[position];
  if (!interval) return [el("td", { class: "number" }, "–")];
  const [value, low, high] = interval.map(dice);
  return [el("td", { class: "number" }, value, el("div", {}, el("small", {}, `${low} to ${high}`)))];
}

function trueCells(one, position) {
  if (!one.truth) return [];
  const { dice: overlap, hd95 } = one.truth.scores[position] ?? { dice: null, hd95: null };
  return [dice(overlap), hd95 === null ? "–" : hd95.toFixed(1)].map((text) => el("td", { class: "number" }, text));
}

function remark(position, volume) {
  const text = volume > 0 ? (SPREADS[position].isOdd(volume) ? "unusual" : null) : "not found";
  return text && el("div", {}, el("small", {}, text));
}

function shownCheck(value, name) {
  const change = () => {
    planes.isShown[value] = input.checked;
    planes.draw();
  };
  const input = el("input", { type: "checkbox", checked: true, "aria-label": `Show ${name}`, onchange: change });
  return input;
}

function gates(one) {
  if (!one.gates.length) return null;
  const list = (texts) => el("ul", {}, ...texts.map((text) => el("li", {}, text)));
  const truth = one.truth ? [el("h2", {}, "Attention gates, by the true labels"), list(one.truth.gates)] : [];
  return el("section", { class: "panel" }, el("h2", {}, "Attention gates"), list(one.gates), ...truth);
}

function findings(one) {
  const list = one.findings.length ? el("ul", {}, ...one.findings.map((text) => el("li", {}, text))) : el("p", { class: "faint" }, "None.");
  return el("section", { class: "panel" }, el("h2", {}, "Findings about the image"), list);
}

function files(one) {
  const links = one.links.map(([kind, href]) => el("a", { href, target: "_blank", rel: "noopener" }, kind));
  return el("section", { class: "panel" }, el("h2", {}, "Files"), links.length ? el("p", { class: "links" }, ...links) : el("p", { class: "faint" }, "None."));
}

function technical(one) {
  const rows = [
    ...Object.entries(one.seconds).map(([stage, value]) => [stage, seconds(value)]),
    ...(one.peak_mib ? [["peak memory", `${one.peak_mib.toLocaleString("en")} MiB`]] : []),
    ...Object.entries(FACTS.software[one.software]),
  ];
  return el("section", { class: "panel" }, el("h2", {}, "How it was made"), el("dl", {}, ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
}
