// The keyboard: what a key does, when it does nothing, and that the help names every key.

import assert from "node:assert/strict";
import test from "node:test";

import { openPage, plain } from "./page.mjs";

const CASES = [{ id: "a" }, { id: "b" }, { id: "c" }];
const shown = (page) => page.of("shownCase")?.id ?? null;
const opened = () => openPage(CASES, { hash: "#case/b" });

const named = (page) => new Set(page.of("KEYS").flatMap(([keys]) => keys.split(" ")));

test("the help names every key of a case and of the table", () => {
  const page = openPage(CASES);
  const words = { ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc" };
  const keys = plain(page.of("[...Object.keys(CASE_KEYS), ...Object.keys(LIST_KEYS)]"));
  assert.deepEqual(keys.filter((key) => !named(page).has(words[key] ?? key)), []);
});

test("the help of pictures says nothing of planes and slices", () => {
  const page = openPage(CASES, { unit: "px" });
  assert.deepEqual(["1", "c"].filter((key) => named(page).has(key)), []);
  assert.doesNotMatch(page.of("KEYS").flat().join(), /slice|plane/);
});

test("a slash brings to the search, and is not typed", () => {
  const page = openPage(CASES);
  assert.equal(page.press("/").isPrevented, true);
  assert.equal(page.document.activeElement, page.document.getElementById("search"));
});

for (const [key, id] of [["j", "c"], ["k", "a"]]) {
  test(`${key} goes to the case beside this one, and stops at the end`, () => {
    const page = opened();
    for (let times = 0; times < 3; times++) {
      page.press(key);
      page.follow();
    }
    assert.equal(shown(page), id);
  });
}

test("Escape leads back to the table, to the row of the case", () => {
  const page = opened();
  page.press("Escape");
  page.follow();
  assert.equal(shown(page), null);
  assert.equal(page.document.getElementById("case").hidden, true);
  assert.equal(page.document.activeElement.textContent, "b");
});

test("letters switch what is drawn on and off", () => {
  const page = opened();
  for (const [name, key] of page.of("TOOLS")) {
    const before = page.of("LOOK")[name];
    page.press(key);
    assert.equal(page.of("LOOK")[name], !before, name);
  }
});

test("the fill goes from nothing to full and no further", () => {
  const page = opened();
  for (const [key, end] of [["]", 1], ["[", 0]]) {
    for (let times = 0; times < 12; times++) page.press(key);
    assert.equal(page.of("LOOK").opacity, end);
  }
});

test("who types into the search, holds Ctrl or moves a slider is not disturbed", () => {
  const page = opened();
  const search = page.of("el")("input", { type: "search" });
  const slider = page.of("el")("input", { type: "range" });
  const events = [page.press("j", { target: search }), page.press("j", { ctrlKey: true }), page.press("Home", { target: slider })];
  assert.deepEqual(events.map((event) => event.isPrevented), [false, false, false]);
  assert.equal(page.location.hash, "#case/b");
});

test("no key does anything while the help is open", () => {
  const page = opened();
  page.press("?");
  assert.equal(page.document.getElementById("help").open, true);
  assert.equal(page.press("j").isPrevented, false);
});

const marked = (page) => page.document.activeElement?.textContent ?? null;

test("a fresh page has its first case marked, and keys go from there without a click or a tab", () => {
  const page = openPage(CASES);
  assert.equal(marked(page), "a");
  for (const [key, id] of [["ArrowDown", "b"], ["j", "c"], ["j", "c"], ["k", "b"], ["ArrowUp", "a"], ["k", "a"], ["End", "c"], ["Home", "a"]]) {
    assert.equal(page.press(key).isPrevented, true);
    assert.equal(marked(page), id, key);
  }
  const links = page.document.getElementById("cases").tBodies[0].querySelectorAll("a");
  assert.deepEqual(links.map((link) => link.attributes.get("tabindex")), ["0", "-1", "-1"]);
});

test("Enter opens the marked case, and does what a button or a link does on these", () => {
  const page = openPage(CASES);
  for (const name of ["a", "button"]) assert.equal(page.press("Enter", { target: page.of("el")(name) }).isPrevented, false);
  page.press("j");
  page.press("Enter");
  assert.equal(page.location.hash, "#case/b");
});

test("after something else had the keyboard, an arrow comes back to the marked case before it goes on", () => {
  const page = openPage(CASES);
  page.press("j");
  page.document.activeElement = null;
  page.press("ArrowDown");
  assert.equal(marked(page), "b");
});

test("arrows go on to the next page of the table and back, and Home and End go to the first and last of all cases", () => {
  const page = openPage(Array.from({ length: 205 }, (_, at) => ({ id: `case${at}` })));
  const { length } = page.document.getElementById("cases").tBodies[0].rows;
  for (let times = 0; times < length; times++) page.press("ArrowDown");
  assert.equal(marked(page), "case100");
  page.press("ArrowUp");
  assert.equal(marked(page), "case99");
  page.press("End");
  assert.equal(marked(page), "case204");
  page.press("Home");
  assert.equal(marked(page), "case0");
});

test("from the search an arrow leads to what was found, and Enter opens the first of it", () => {
  const page = openPage(CASES);
  const search = page.of("el")("input", { type: "search" });
  Object.assign(page.of("LIST"), { query: "b" });
  page.of("changed")();
  assert.equal(page.press("Home", { target: search }).isPrevented, false);
  page.press("ArrowDown", { target: search });
  assert.equal(marked(page), "b");
  page.press("Enter", { target: search });
  assert.equal(page.location.hash, "#case/b");
});

test("where no case is found, no key does harm", () => {
  const page = openPage(CASES);
  Object.assign(page.of("LIST"), { query: "nowhere" });
  page.of("changed")();
  for (const key of ["ArrowDown", "ArrowUp", "j", "k", "Home", "End", "Enter"]) page.press(key);
  assert.equal(page.location.hash, "");
});

test("the link that skips leads to the marked case, or to the heading of the one that is open", () => {
  const page = openPage(CASES);
  const event = { preventDefault() {} };
  page.document.activeElement = null;
  page.document.getElementById("skip").listeners.click(event);
  assert.equal(marked(page), "a");
});
