// Volumes among those of all cases: quantiles, which are unusual, and where they stand on the axis.

import assert from "node:assert/strict";
import test from "node:test";

import { openPage, plain } from "./page.mjs";

const pageOf = (volumes) => openPage(volumes.map((volume) => ({ volumes: [volume] })), { structures: ["one"] });

test("quantiles lie between the values, as NumPy has them", () => {
  const quantile = pageOf([1]).of("quantile");
  assert.deepEqual([0, 0.25, 0.5, 1].map((share) => quantile([1, 2, 4, 8], share)), [1, 1.75, 3, 8]);
  assert.equal(quantile([5], 0.75), 5);
});

test("structures that were not found count for no spread", () => {
  assert.deepEqual(plain(pageOf([0, 3, null, 1]).of("SPREADS[0].sorted")), [1, 3]);
});

test("a volume far from the middle half is unusual, from eight cases on", () => {
  const usual = [10, 11, 12, 13, 14, 15, 16];
  const isOdd = (page, value) => page.of("SPREADS[0]").isOdd(value);
  assert.equal(isOdd(pageOf([...usual, 100]), 100), true);
  assert.equal(isOdd(pageOf([...usual, 100]), 13), false);
  assert.equal(isOdd(pageOf([...usual.slice(1), 100]), 100), false);
});

test("a place counts the smaller cases, and all others but the case itself", () => {
  const { of } = pageOf([1, 2, 3, 4]);
  assert.equal(of("place(SPREADS[0], 3)"), "2 cases smaller, 1 not");
  assert.equal(of("place(SPREADS[0], 1)"), "0 cases smaller, 3 not");
});

for (const [kind, volumes] of [["linear", [10, 20, 30]], ["logarithmic", [1, 10, 100]], ["single", [7, 7]]]) {
  test(`a ${kind} axis rises with the volume and ends at its ends`, () => {
    const { of } = pageOf(volumes);
    const { left, right } = of("PLOT");
    const x = of("scale")(volumes);
    const places = [0, 1e-9, ...volumes, 1e3, 1e9].map(x);
    assert.deepEqual(places, [...places].sort((a, b) => a - b));
    assert.ok(places.every((at) => at >= left && at <= right));
    assert.equal(x(1e9), right);
  });
}

test("a wide range is logarithmic, so that the middle of ten-folds stands in the middle", () => {
  const { of } = pageOf([1]);
  const at = [1, 10, 100].map(of("scale")([1, 10, 100]));
  assert.ok(Math.abs(at[1] - (at[0] + at[2]) / 2) < 1e-9);
});

test("a plot says in words what it shows", () => {
  const { of } = pageOf([1, 2, 3]);
  assert.equal(of("described(0, null)"), "one: 3 cases from 1.00 to 3.00 ml, median 2.00 ml");
  assert.match(of("described(0, 2)"), /^2\.00 ml among 3 cases .*; 1 case smaller, 1 not$/);
});

test("a few cases have a line each of one length, and of many the lines are as long as cases are many", () => {
  const lines = (positions) => plain(pageOf([1]).of("lines")(positions)).match(/M[^M]+/g).map((one) => one.match(/M(\S+) \S+v(\S+)/).slice(1).map(Number));
  assert.deepEqual(lines([10, 10.04, 20]), [[10, 16], [20, 16]]);
  const many = lines([...Array(300).fill(10), ...Array(3).fill(20)]);
  assert.deepEqual(many.map(([at]) => at), [10, 20]);
  assert.ok(many[0][1] === 16 && many[1][1] < 3 && many[1][1] > 1);
});
