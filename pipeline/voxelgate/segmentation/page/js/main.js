// Which view is shown follows the address, so that Back and links to a case work; keys do what the buttons do.

const KEYS = [
  ["/", "search the cases"],
  ["↑ ↓", "move through the table, or the slices of the marked plane"],
  ["Enter", "open a case"],
  ["j k", "next and previous case"],
  ["1 2 3", "mark the axial, coronal or sagittal plane"],
  ["Home End", "first and last slice"],
  ["o", "overlay on and off"],
  ["l", "outlines on and off"],
  ["n", "numbers on and off"],
  ["c", "lines where the other planes cut, on and off; a click brings the other planes to a point"],
  ["t", "outlines of the true labels on and off, where they were given"],
  ["a", "attention on and off, where it was written; structures are outlined then, not filled"],
  ["g", "attention of the next gate"],
  ["[ ]", "fainter and stronger fill"],
  ["Esc", "back to all cases"],
  ["?", "these keys"],
];

function openCase(one) {
  location.hash = hashOf(one);
}

function openList() {
  location.hash = "";
}

function openNeighbour(step) {
  const found = currentOrder();
  const next = found[found.indexOf(shownCase) + step];
  if (next) location.replace(hashOf(next)); // Back then leads to the table, however many cases were paged through
}

function route() {
  const [, id] = location.hash.match(/^#case\/(.*)$/) ?? [];
  const one = id === undefined ? undefined : CASES.find((candidate) => hashOf(candidate) === location.hash);
  const last = shownCase;
  byId("overview").hidden = byId("list").hidden = Boolean(one);
  byId("case").hidden = !one;
  document.title = one ? `${one.id} – segmentation report` : `Segmentation report: ${counted(CASES.length, "case", "cases")}`;
  if (one) {
    showCase(one);
    return;
  }
  closeCase();
  byId("case").replaceChildren();
  if (last) focusCase(last);
}

function focusCase(one) {
  const position = currentOrder().indexOf(one);
  if (position < 0) return;
  LIST.page = Math.floor(position / PAGE_ROWS);
  showTable();
  focusRow(byId("cases").tBodies[0].rows[position % PAGE_ROWS].querySelector("a"));
}

const CASE_KEYS = {
  j: () => openNeighbour(1),
  k: () => openNeighbour(-1),
  Escape: openList,
  ArrowDown: () => planes?.step(1),
  ArrowUp: () => planes?.step(-1),
  Home: () => planes?.step(-Infinity),
  End: () => planes?.step(Infinity),
  "[": () => changeOpacity(-OPACITY_STEP),
  "]": () => changeOpacity(OPACITY_STEP),
  g: () => chooseGate(LOOK.attention ? LOOK.gate + 1 : LOOK.gate),
};
for (const [name, key] of TOOLS) CASE_KEYS[key] = () => setLook(name, !LOOK[name]);
for (const number of [1, 2, 3]) CASE_KEYS[number] = () => planes?.activate(planes.views[number - 1]);

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const isTyping = event.target.matches('input[type="search"], select');
  if (event.key === "?" && !isTyping) byId("help").showModal();
  else if (shownCase) pressedInCase(event, isTyping);
  else if (event.key === "/" && !isTyping) {
    event.preventDefault();
    byId("search").focus();
  }
}

function pressedInCase(event, isTyping) {
  const isSliding = event.target.matches('input[type="range"]') && /^(Arrow|Home|End)/.test(event.key);
  const action = isTyping || isSliding ? undefined : CASE_KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

byId("help-keys").append(...KEYS.flatMap(([key, text]) => [el("span", {}, el("kbd", {}, key)), el("span", {}, text)]));
byId("help-button").addEventListener("click", () => byId("help").showModal());
document.addEventListener("keydown", pressed);
window.addEventListener("hashchange", route);
showOverview();
setUpFilters();
showTable();
showDistributions();
route();
