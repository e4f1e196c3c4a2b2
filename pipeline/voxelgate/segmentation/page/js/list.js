// The table of all cases: searched, filtered, sorted, a page at a time; one case is marked, and keys go from there.

const PAGE_ROWS = 100;
const MOST_VOLUME_COLUMNS = 3; // with more structures, one column shows the chosen one
const MOST_PLOTS = 12;
const MOST_ODD = 4;
const LIST = { query: "", outcomes: new Set(OUTCOMES.map(([key]) => key)), sort: "outcome", descending: false, marked: 0, structure: 0 };
let order = null; // cases that are found, sorted; null when a choice changed

function columns() {
  const positions = STRUCTURES.length <= MOST_VOLUME_COLUMNS ? STRUCTURES.keys() : [LIST.structure];
  const volumeColumns = [...positions].map((position) => ({
    key: `volume-${position}`,
    title: `${STRUCTURES[position]}, ${UNIT}`,
    isNumber: true,
    value: (one) => one.volumes[position],
    cell: (one) => size(one.volumes[position]),
  }));
  return [
    { key: "id", title: "Case", className: "name", value: (one) => one.id, cell: caseLink },
    { key: "outcome", title: "Outcome", value: (one) => SEVERITY_OF[one.outcome], cell: (one) => outcome(one.outcome) },
    { key: "why", title: "Why", className: "why", value: (one) => one.reasons.join(" ") || null, cell: (one) => one.reasons.join(" ") },
    ...(HAS_FORETOLD ? [{ key: "foretold", title: "Predicted Dice", isNumber: true, value: (one) => one.foretold?.dice ?? null, cell: (one) => dice(one.foretold?.dice ?? null) }] : []),
    ...(HAS_TRUTH ? [{ key: "dice", title: "Dice", isNumber: true, value: (one) => one.truth?.dice ?? null, cell: (one) => dice(one.truth?.dice ?? null) }] : []),
    ...volumeColumns,
    { key: "time", title: "Time", isNumber: true, value: (one) => one.time || null, cell: (one) => (one.time ? seconds(one.time) : "–") },
  ];
}

function hashOf(one) {
  return `#case/${encodeURIComponent(one.id)}`;
}

function caseLink(one) {
  return el("a", { href: hashOf(one), tabindex: -1, title: one.id }, one.id);
}

function currentOrder() {
  if (order) return order;
  const words = LIST.query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = CASES.filter((one) => LIST.outcomes.has(one.outcome) && words.every((word) => one.text.includes(word)));
  const { value } = columns().find(({ key }) => key === LIST.sort) ?? columns()[0];
  const sign = LIST.descending ? -1 : 1;
  order = found.map((one) => [value(one), one]).sort(([a, one], [b, other]) => compared(a, b, sign) || one.number - other.number).map(([, one]) => one);
  return order;
}

const COLLATOR = new Intl.Collator("en", { numeric: true });

function compared(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null); // what is not there comes last, whatever the direction
  return sign * (typeof a === "string" ? COLLATOR.compare(a, b) : a - b);
}

function changed() {
  order = null;
  LIST.marked = 0;
  showTable();
}

function showTable() {
  const found = currentOrder();
  const all = columns();
  byId("cases").tHead.replaceChildren(el("tr", {}, ...all.map(headCell)));
  const first = shownPage() * PAGE_ROWS;
  byId("cases").tBodies[0].replaceChildren(...found.slice(first, first + PAGE_ROWS).map((one) => row(one, all)));
  markedLink()?.setAttribute("tabindex", 0);
  byId("found").textContent = found.length === CASES.length ? counted(found.length, "case", "cases") : `${found.length.toLocaleString("en")} of ${counted(CASES.length, "case", "cases")}`;
  showPages(found.length);
}

function headCell({ key, title, isNumber }) {
  const isSorted = LIST.sort === key;
  const sort = () => {
    [LIST.descending, LIST.sort] = [isSorted && !LIST.descending, key];
    changed();
    byId("cases").tHead.querySelector(`[data-key="${key}"]`).focus();
  };
  const direction = isSorted ? (LIST.descending ? "descending" : "ascending") : null;
  return el("th", { scope: "col", class: isNumber ? "number" : null, "aria-sort": direction }, el("button", { type: "button", "data-key": key, onclick: sort }, ...breakable(title)));
}

// Names of structures are long words; they may break after what stands between their parts.
function breakable(title) {
  return title.split(/(?<=[_.-])/).flatMap((part) => [part, el("wbr")]);
}

function row(one, all) {
  const cells = all.map(({ cell, isNumber, className }) => el("td", { class: isNumber ? "number" : (className ?? null) }, cell(one)));
  return el("tr", { onclick: () => openCase(one) }, ...cells);
}

function showPages(count) {
  const pages = Math.ceil(count / PAGE_ROWS);
  const page = shownPage();
  const turn = (by) => {
    LIST.marked = (page + by) * PAGE_ROWS;
    showTable();
  };
  const button = (text, by) => el("button", { type: "button", disabled: !(page + by >= 0 && page + by < pages), onclick: () => turn(by) }, text);
  const first = page * PAGE_ROWS + 1;
  const range = `${first.toLocaleString("en")} to ${Math.min(count, first + PAGE_ROWS - 1).toLocaleString("en")} of ${count.toLocaleString("en")}`;
  byId("pages").replaceChildren(...(pages > 1 ? [button("Previous page", -1), el("span", {}, range), button("Next page", 1)] : []));
}

function shownPage() {
  return Math.floor(LIST.marked / PAGE_ROWS);
}

// The link of the marked case: the only one of the table in the order of Tab.
function markedLink() {
  return byId("cases").tBodies[0].rows[LIST.marked % PAGE_ROWS]?.querySelector("a");
}

// Mark another case, on whatever page it is, and bring the keyboard to it.
function mark(position) {
  const page = shownPage();
  markedLink()?.setAttribute("tabindex", -1);
  LIST.marked = Math.min(Math.max(position, 0), Math.max(currentOrder().length - 1, 0));
  if (shownPage() !== page) showTable();
  markedLink()?.setAttribute("tabindex", 0);
  markedLink()?.focus();
}

// Mark the next case, or the marked one while the keyboard is elsewhere.
function markNext(by) {
  mark(document.activeElement === markedLink() ? LIST.marked + by : LIST.marked);
}

function setUpFilters() {
  const present = OUTCOMES.filter(([key]) => CASES.some((one) => one.outcome === key));
  for (const [key, word] of present) {
    const input = el("input", { type: "checkbox", checked: true, name: key, onchange: () => {
      LIST.outcomes[input.checked ? "add" : "delete"](key);
      changed();
    } });
    byId("outcome-filter").append(el("label", { "data-outcome": key }, input, icon(key), word));
  }
  byId("search").addEventListener("input", (event) => {
    LIST.query = event.target.value;
    changed();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  if (STRUCTURES.length <= MOST_VOLUME_COLUMNS) return;
  byId("structure-choice").hidden = false;
  byId("structure").append(...STRUCTURES.map((name, position) => el("option", { value: position }, name)));
  byId("structure").addEventListener("change", (event) => {
    LIST.structure = Number(event.target.value);
    changed();
  });
}

function showOverview() {
  const counts = [...document.querySelectorAll(".counts [data-outcome]")];
  for (const item of counts) item.prepend(icon(item.dataset.outcome));
  const bars = counts.map((item) => [item.dataset.outcome, Number(item.querySelector("b").dataset.count)]).filter(([, count]) => count > 0);
  for (const [key, count] of bars) {
    const part = el("span", { "data-outcome": key });
    part.style.flexGrow = count;
    byId("outcome-bar").append(part);
  }
}

function showDistributions() {
  const measured = STRUCTURES.map((_, position) => position).filter((position) => SPREADS[position].sorted.length);
  const panels = measured.map(distribution);
  byId("distributions").replaceChildren(...panels.slice(0, MOST_PLOTS));
  if (panels.length <= MOST_PLOTS) return;
  const more = () => byId("distributions").replaceChildren(...panels);
  byId("distributions").append(el("button", { type: "button", onclick: more }, `Show all ${panels.length} structures`));
}

function distribution(position) {
  const { sorted, isOdd } = SPREADS[position];
  const odd = CASES.filter((one) => one.volumes[position] > 0 && isOdd(one.volumes[position]));
  const buttons = odd.slice(0, MOST_ODD).map((one) => el("button", { type: "button", onclick: () => openCase(one) }, `${one.id} (${size(one.volumes[position])})`));
  const rest = odd.length > MOST_ODD ? [`and ${odd.length - MOST_ODD} more`] : [];
  const line = odd.length ? el("p", { class: "odd-cases" }, el("small", {}, "unusual:"), ...buttons, ...rest) : null;
  return el("figure", { class: "panel" }, el("figcaption", {}, el("b", {}, STRUCTURES[position]), " ", el("small", {}, `${MEASURE} in ${counted(sorted.length, "case", "cases")}`)), stripPlot(position), line);
}
