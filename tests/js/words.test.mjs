// Numbers and elements of the page: how they are worded, and that no text becomes HTML.

import assert from "node:assert/strict";
import test from "node:test";

import { openPage } from "./page.mjs";

const { of } = openPage([{}]);

test("a volume has about three digits", () => {
  const texts = [0, 0.0123, 0.5, 12.34, 1234.5].map(of("size"));
  assert.deepEqual(texts, ["0.00", "0.012", "0.50", "12.3", "1,235"]);
});

test("pixels are whole", () => {
  assert.equal(openPage([{}], { unit: "px" }).of("size")(1234), "1,234");
});

test("what was not measured is a dash", () => {
  assert.deepEqual([of("size")(null), of("size")(undefined), of("dice")(null)], ["–", "–", "–"]);
});

test("times below ten seconds have a tenth, and those of a minute are minutes", () => {
  const texts = [0.04, 9.94, 12.3, 59.4, 59.7, 60, 119.7, 3600].map(of("seconds"));
  assert.deepEqual(texts, ["0.0 s", "9.9 s", "12 s", "59 s", "1 min 0 s", "1 min 0 s", "2 min 0 s", "60 min 0 s"]);
});

test("one is singular, and thousands have a comma", () => {
  assert.equal(of("counted")(1, "case", "cases"), "1 case");
  assert.equal(of("counted")(0, "case", "cases"), "0 cases");
  assert.equal(of("counted")(12345, "case", "cases"), "12,345 cases");
});

test("text stays text, whatever signs it holds", () => {
  const element = of("el")("b", { title: "<i>" }, "<script>alert(1)</script>");
  assert.deepEqual(element.children, ["<script>alert(1)</script>"]);
  assert.equal(element.attributes.get("title"), "<i>");
});

test("attributes that are false, and children that are not there, are left out", () => {
  const element = of("el")("input", { checked: true, disabled: false, name: null }, null, "a", undefined);
  assert.deepEqual([...element.attributes], [["checked", ""]]);
  assert.deepEqual(element.children, ["a"]);
});

test("what begins with on is listened to", () => {
  const listener = () => {};
  assert.equal(of("el")("button", { onclick: listener }).listeners.click, listener);
});

test("every outcome has a word, a shape and a rank of its own", () => {
  const outcomes = of("OUTCOMES");
  for (const part of [0, 1, 2]) assert.equal(new Set(outcomes.map((one) => one[part])).size, outcomes.length);
  assert.equal(of("outcome")("review").textContent, "for review");
});
