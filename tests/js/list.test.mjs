// The table: which cases are found, and in which order.

import assert from "node:assert/strict";
import test from "node:test";

import { openPage, plain } from "./page.mjs";

const ids = ({ of }) => plain(of("currentOrder().map((one) => one.id)"));
const choose = ({ of }, changes) => {
  Object.assign(of("LIST"), changes);
  of("changed")();
};

test("the worst outcome comes first, and cases of one outcome keep their order", () => {
  const page = openPage([{ outcome: "accept" }, { outcome: "refuse" }, { outcome: "review" }, { outcome: "refuse" }]);
  assert.deepEqual(ids(page), ["case1", "case3", "case2", "case0"]);
});

test("names are sorted by the numbers in them", () => {
  const page = openPage([{ id: "case10" }, { id: "case9" }, { id: "Case1" }]);
  choose(page, { sort: "id" });
  assert.deepEqual(ids(page), ["Case1", "case9", "case10"]);
});

test("what was not measured comes last in both directions", () => {
  const page = openPage([{ volumes: [null, 1] }, { volumes: [2, 1] }, { volumes: [10, 1] }]);
  choose(page, { sort: "volume-0" });
  assert.deepEqual(ids(page), ["case1", "case2", "case0"]);
  choose(page, { descending: true });
  assert.deepEqual(ids(page), ["case2", "case1", "case0"]);
});

test("comparing is antisymmetric and transitive for values that are there", () => {
  const compared = openPage([{}]).of("compared");
  const values = [-1, 0, 0.5, 3, null];
  for (const a of values) {
    for (const b of values) {
      assert.equal(Math.sign(compared(a, b, 1)), -Math.sign(compared(b, a, 1)) || 0);
      if (a !== null && b !== null) assert.equal(compared(a, b, -1) + 0, -compared(a, b, 1) + 0);
    }
  }
});

test("a search finds cases that have every word, in any case and any place", () => {
  const page = openPage([{ id: "a", findings: ["The Spacing is odd."] }, { id: "b", reasons: ["nothing odd"] }, { id: "c" }]);
  choose(page, { query: "ODD  spacing" });
  assert.deepEqual(ids(page), ["a"]);
  choose(page, { query: "odd" });
  assert.deepEqual(ids(page), ["a", "b"]);
});

test("an outcome that is switched off is not shown", () => {
  const page = openPage([{ outcome: "accept" }, { outcome: "failed" }]);
  page.of("LIST").outcomes.delete("failed");
  page.of("changed")();
  assert.deepEqual(ids(page), ["case0"]);
  assert.equal(page.document.getElementById("found").textContent, "1 of 2 cases");
});

test("a hundred rows make a page, and turning it shows the rest", () => {
  const page = openPage(Array.from({ length: 103 }, () => ({})));
  const rows = () => page.document.getElementById("cases").tBodies[0].children.length;
  const [previous, place, next] = page.document.getElementById("pages").children;
  assert.equal(rows(), 100);
  assert.equal(place.textContent, "1 to 100 of 103");
  assert.deepEqual([previous, next].map((button) => button.attributes.has("disabled")), [true, false]);
  next.listeners.click();
  assert.equal(rows(), 3);
});

test("a second click on a heading turns the order round", () => {
  const page = openPage([{ volumes: [1, 1] }, { volumes: [3, 1] }, { volumes: [2, 1] }]);
  const click = () => page.document.getElementById("cases").tHead.querySelector('[data-key="volume-0"]').listeners.click();
  click();
  assert.deepEqual(ids(page), ["case0", "case2", "case1"]);
  click();
  assert.deepEqual(ids(page), ["case1", "case2", "case0"]);
});

test("with more than three structures one column shows the chosen one", () => {
  const page = openPage([{}], { structures: ["a", "b", "c", "d"] });
  choose(page, { structure: 3 });
  const titles = plain(page.of("columns().map((one) => one.title)"));
  assert.deepEqual(titles.filter((title) => title.includes("ml")), ["d, ml"]);
});

test("Dice has a column only where there are true labels", () => {
  const titles = ({ of }) => plain(of("columns().map((one) => one.title)"));
  assert.equal(titles(openPage([{}])).includes("Dice"), false);
  assert.equal(titles(openPage([{ truth: { dice: 0.9, scores: [], gates: [] } }])).includes("Dice"), true);
});

test("an address holds any name", () => {
  const page = openPage([{ id: "a/b #1 ü%" }], { hash: `#case/${encodeURIComponent("a/b #1 ü%")}` });
  assert.equal(page.of("hashOf(CASES[0])"), page.location.hash);
  assert.equal(page.of("shownCase").id, "a/b #1 ü%");
  assert.equal(page.document.title, "a/b #1 ü% – segmentation report");
});
