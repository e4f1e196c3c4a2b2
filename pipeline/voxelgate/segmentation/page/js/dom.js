// Make elements without ever parsing text as HTML, and word numbers.

const SVG = "http://www.w3.org/2000/svg";

function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function byId(id) {
  return document.getElementById(id);
}

function size(value) {
  if (value === null || value === undefined) return "–";
  const digits = UNIT === "px" ? 0 : value >= 100 ? 0 : value >= 10 ? 1 : value >= 0.1 || value === 0 ? 2 : 3;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function dice(value) {
  return value === null ? "–" : value.toFixed(3);
}

function seconds(value) {
  const whole = Math.round(value);
  if (whole >= 60) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${value.toFixed(value < 10 ? 1 : 0)} s`;
}

function counted(count, one, many) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

// Each outcome has a word and a shape, so that none is told by its colour alone.
const OUTCOMES = [
  ["refuse", "refused", "M5 1h6l4 4v6l-4 4H5l-4-4V5zM5.2 5.2l5.6 5.6M10.8 5.2l-5.6 5.6"],
  ["review", "for review", "M8 1.5 15 14.5H1zM8 6v4M8 12v.6"],
  ["accept", "accepted", "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1zM4.6 8.2 7 10.6l4.4-5"],
  ["rejected", "rejected", "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1zM3.2 12.8 12.8 3.2"],
  ["failed", "failed", "M2 2 14 14M14 2 2 14"],
  ["unfinished", "not finished", "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1zM8 4v4.5h3"],
];
const WORD_OF = Object.fromEntries(OUTCOMES.map(([key, word]) => [key, word]));
const SEVERITY_OF = Object.fromEntries(OUTCOMES.map(([key], position) => [key, position]));

function icon(key) {
  const path = OUTCOMES.find(([name]) => name === key)[2];
  const line = svg("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": 1.8 });
  return svg("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true" }, line);
}

function outcome(key) {
  return el("span", { class: "outcome", "data-outcome": key }, icon(key), WORD_OF[key]);
}
