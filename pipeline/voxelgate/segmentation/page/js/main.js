// Which view is shown follows the address, so that Back and links to a case work; keys do what the buttons do.

const OF_SLICES = UNIT === "px" ? "" : ", or slice of the marked plane"; // a picture has one
const KEYS = [
  ["/", "search the cases; ↓ leads to those that are found"],
  ["↑ ↓", `previous and next case of the table${OF_SLICES}`],
  ["Home End", `first and last case of the table${OF_SLICES}`],
  ["Enter", "open the marked case"],
  ["j k", "next and previous case"],
  ...(UNIT === "px" ? [] : [["1 2 3", "mark the axial, coronal or sagittal plane"]]),
  ["o", "overlay on and off"],
  ["l", "outlines on and off"],
  ["n", "numbers on and off"],
  ...(UNIT === "px" ? [] : [["c", "lines where the other planes cut, on and off; a click brings the other planes to a point"]]),
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
  if (last) mark(currentOrder().indexOf(last));
  else markedLink()?.focus({ preventScroll: true }); // a fresh page: keys go from the first case
}

function openMarked() {
  const one = currentOrder()[LIST.marked];
  if (one) openCase(one);
}

const LIST_KEYS = {
  "/": () => byId("search").focus(),
  j: () => markNext(1),
  k: () => markNext(-1),
  ArrowDown: () => markNext(1),
  ArrowUp: () => markNext(-1),
  Home: () => mark(0),
  End: () => mark(Infinity),
  Enter: openMarked,
};

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
  if (event.key === "?" && !isTyping) {
    byId("help").showModal();
    return;
  }
  const action = shownCase ? actionInCase(event, isTyping) : actionInList(event, isTyping);
  if (!action) return;
  event.preventDefault();
  action();
}

function actionInCase(event, isTyping) {
  const isSliding = event.target.matches('input[type="range"]') && /^(Arrow|Home|End)/.test(event.key);
  return isTyping || isSliding ? undefined : CASE_KEYS[event.key];
}

// From the search two keys lead on; Enter on what has an action of its own is that.
function actionInList(event, isTyping) {
  const isSearching = event.target.matches('input[type="search"]') && /^(ArrowDown|Enter)$/.test(event.key);
  const isOwn = isTyping ? !isSearching : event.key === "Enter" && event.target.matches("a, button, input");
  return isOwn ? undefined : LIST_KEYS[event.key];
}

function skip(event) {
  event.preventDefault();
  if (shownCase) byId("case").querySelector("h1").focus();
  else markedLink()?.focus();
}

byId("help-keys").append(...KEYS.flatMap(([key, text]) => [el("span", {}, el("kbd", {}, key)), el("span", {}, text)]));
byId("skip").addEventListener("click", skip);
byId("help-button").addEventListener("click", () => byId("help").showModal());
document.addEventListener("keydown", pressed);
window.addEventListener("hashchange", route);
showOverview();
setUpFilters();
showTable();
showDistributions();
route();
