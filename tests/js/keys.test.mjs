// The keyboard: what a key does, when it does nothing, and that the help names every key.

import assert from "node:assert/strict";
import test from "node:test";

import { openPage, plain } from "./page.mjs";

const CASES = [{ id: "a" }, { id: "b" }, { id: "c" }];
const shown = (page) => page.of("shownCase")?.id ?? null;
const opened = () => openPage(CASES, { hash: "#case/b" });

test("the help names every key of a case", () => {
  const page = openPage(CASES);
  const named = new Set(page.of("KEYS").flatMap(([keys]) => keys.split(" ")));
  const words = { ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc" };
  const keys = plain(page.of("Object.keys(CASE_KEYS)"));
  assert.deepEqual(keys.filter((key) => !named.has(words[key] ?? key)), []);
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

test("arrows move through the rows of the table and stop at its ends", () => {
  const page = openPage(CASES);
  const body = page.document.getElementById("cases").tBodies[0];
  const links = body.querySelectorAll("a");
  links[0].focus();
  const press = (key) => body.listeners.keydown({ key, preventDefault() {} });
  for (const [key, id] of [["ArrowDown", "b"], ["ArrowUp", "a"], ["ArrowUp", "a"], ["End", "c"], ["ArrowDown", "c"], ["Home", "a"]]) {
    press(key);
    assert.equal(page.document.activeElement.textContent, id);
  }
  assert.deepEqual(links.map((link) => link.attributes.get("tabindex")), ["0", "-1", "-1"]);
});
