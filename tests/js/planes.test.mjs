// Labels on the planes: enlarged, coloured, hatched, outlined.

import assert from "node:assert/strict";
import test from "node:test";

import { openPage } from "./page.mjs";

const { of } = openPage([{}]);
const COLOURS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [204, 121, 167], [213, 94, 0], [0, 114, 178]];
const LOOK = { opacity: 1, outline: false, colours: COLOURS };
const plane = { x: 0, width: 2, height: 2 };
const slices = [1, 2, 2, 0, 3, 3, 3, 3]; // two slices of 2 x 2, one above the other
const all = [false, true, true, true];
const enlarged = (slice, side, isShown = all) => Array.from(of("enlarged")({ width: 2 }, slices, plane, slice, side, side, isShown));
const pixel = (image, at) => Array.from(image.data.slice(4 * at, 4 * at + 4));

test("a slice in its own size is unchanged", () => {
  assert.deepEqual(enlarged(0, 2), [1, 2, 2, 0]);
  assert.deepEqual(enlarged(1, 2), [3, 3, 3, 3]);
});

test("an enlarged slice has no labels but its own, and keeps its corners", () => {
  const found = enlarged(0, 16);
  assert.deepEqual([found[0], found[15], found[240], found[255]], [1, 2, 2, 0]);
  assert.deepEqual([...new Set(found)].sort(), [0, 1, 2]);
});

test("a structure that is switched off is not there", () => {
  assert.deepEqual(enlarged(0, 2, [false, true, false, true]), [1, 0, 0, 0]);
});

test("of the four nearest labels, those that are equal count together", () => {
  const heaviest = of("heaviest");
  assert.equal(heaviest(1, 2, 3, 4, 0.1, 0.1), 1);
  assert.equal(heaviest(1, 2, 3, 4, 0.9, 0.9), 4);
  assert.equal(heaviest(1, 2, 2, 3, 0.4, 0.4), 2);
});

test("cells of a line are near its pixels, never beyond its ends", () => {
  for (const [cells, pixels] of [[1, 5], [3, 9], [7, 3]]) {
    const { low, high, share } = of("nearest")(cells, pixels);
    assert.ok(low.every((at, i) => at >= 0 && high[i] < cells && high[i] - at <= 1 && share[i] >= 0 && share[i] < 1));
  }
});

test("each structure is filled with the colour that its preview names", () => {
  const { image } = of("overlay")([1, 2, 3, 4, 5, 6, 7, 0], 8, 1, LOOK, 1);
  COLOURS.forEach((colour, at) => assert.deepEqual(pixel(image, at), [...colour, 255]));
  assert.deepEqual(pixel(image, 7), [0, 0, 0, 0]);
});

test("structures after the seventh have a hatching too", () => {
  const hatching = (value) => Array.from({ length: 144 }, (_, at) => of("hatched")(value, at % 12, Math.floor(at / 12), 3));
  assert.ok(hatching(7).every(Boolean));
  const kinds = [1, 8, 15, 22].map((value) => String(hatching(value)));
  assert.equal(new Set(kinds).size, 4);
  for (const value of [8, 15, 22]) assert.equal(hatching(value).filter(Boolean).length, 72);
});

test("an outline is opaque at the border and as faint as asked inside", () => {
  const labels = Array.from({ length: 49 }, (_, at) => ([1, 2, 3, 4, 5].includes(at % 7) && at > 6 && at < 42 ? 1 : 0));
  const { image } = of("overlay")(labels, 7, 7, { opacity: 0.2, outline: true, colours: COLOURS }, 0.5);
  assert.equal(pixel(image, 8)[3], 255);
  assert.equal(pixel(image, 24)[3], 51);
  assert.equal(pixel(image, 0)[3], 0);
});

test("true labels have an outline of white and colour, and no fill", () => {
  const labels = Array.from({ length: 225 }, (_, at) => (at % 15 > 1 && at % 15 < 13 && at > 29 && at < 195 ? 1 : 0));
  const { image } = of("trueOutline")(labels, 15, 15, 0.5, COLOURS);
  const seen = new Set(labels.map((value, at) => String(pixel(image, at))));
  assert.deepEqual([...seen].sort(), ["0,0,0,0", "230,159,0,255", "255,255,255,255"]);
  assert.equal(pixel(image, 7 * 15 + 7)[3], 0);
});

test("more attention is brighter and less clear, and none is clear", () => {
  const brightness = (share) => of("heatColour")(share).slice(0, 2).reduce((sum, value) => sum + value);
  assert.equal(of("heatColour")(0)[3], 0);
  for (let step = 1; step <= 10; step++) {
    assert.ok(brightness(step / 10) > brightness((step - 1) / 10));
    assert.ok(of("heatColour")(step / 10).every((value) => value >= 0 && value <= 255));
  }
});
