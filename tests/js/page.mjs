// Open the script of the report page outside a browser: its files as the page joins them, on elements that only remember.

import { readFileSync } from "node:fs";
import vm from "node:vm";

const PAGE = new URL("../../pipeline/voxelgate/segmentation/page/", import.meta.url);
const SELECTOR = /^([a-z0-9]+)?(?:\[([\w-]+)(?:="([^"]*)")?\])?$/;

// Return the names and texts of the files of the page's script, in the order that the page's builder states.
export function scripts() {
  const [, names] = readFileSync(new URL("build.py", PAGE), "utf8").match(/^SCRIPTS = \(([^)]*)\)$/m);
  return [...names.matchAll(/"(\w+)"/g)].map(([, name]) => [`${name}.js`, readFileSync(new URL(`js/${name}.js`, PAGE), "utf8")]);
}

class FakeElement {
  constructor(page, name) {
    Object.assign(this, { page, name, attributes: new Map(), children: [], listeners: {}, style: {}, dataset: {}, hidden: false });
    if (name === "table") [this.tHead, this.tBodies] = [new FakeElement(page, "thead"), [new FakeElement(page, "tbody")]];
  }

  setAttribute(name, value) {
    this.attributes.set(name, String(value));
  }

  addEventListener(name, listener) {
    this.listeners[name] = listener;
  }

  append(...children) {
    this.children.push(...children);
  }

  replaceChildren(...children) {
    this.children = children;
  }

  focus() {
    this.page.activeElement = this;
  }

  showModal() {
    this.open = true;
  }

  getContext() {
    return { putImageData: (image) => Object.assign(this, { image }) };
  }

  get textContent() {
    return this.children.map((child) => child.textContent ?? child).join("");
  }

  set textContent(text) {
    this.children = [text];
  }

  get rows() {
    return this.children;
  }

  get lastElementChild() {
    return this.children.at(-1);
  }

  replaceWith() {}

  matches(selectors) {
    return selectors.split(", ").some((selector) => {
      const [, name, attribute, value] = selector.match(SELECTOR);
      const isNamed = name === undefined || name === this.name;
      return isNamed && (attribute === undefined || (value === undefined ? this.attributes.has(attribute) : this.attributes.get(attribute) === value));
    });
  }

  querySelectorAll(selectors) {
    const elements = this.children.filter((child) => child instanceof FakeElement);
    return elements.flatMap((child) => [...(child.matches(selectors) ? [child] : []), ...child.querySelectorAll(selectors)]);
  }

  querySelector(selectors) {
    return this.querySelectorAll(selectors)[0] ?? null;
  }
}

class FakeDocument {
  constructor(facts) {
    this.known = new Map([["cases", new FakeElement(this, "table")], ["facts", { textContent: JSON.stringify(facts) }]]);
    this.listeners = {};
  }

  createElement(name) {
    return new FakeElement(this, name);
  }

  createElementNS(_space, name) {
    return new FakeElement(this, name);
  }

  getElementById(id) {
    if (!this.known.has(id) && !/^(preview|tool)-/.test(id)) this.known.set(id, new FakeElement(this, "div"));
    return this.known.get(id) ?? null;
  }

  querySelectorAll() {
    return [];
  }

  addEventListener(name, listener) {
    this.listeners[name] = listener;
  }
}

// Return a page of some cases: `of(text)` evaluates a name or an expression inside its script; `press(key)` types.
export function openPage(cases, { structures = ["one", "two"], unit = "ml", hash = "" } = {}) {
  const document = new FakeDocument({ structures, unit, cases: cases.map((one, at) => caseOf(one, at, structures)), software: [{}] });
  const location = { hash, replace: (address) => Object.assign(location, { hash: address }) };
  const window = { listeners: {}, scrollTo() {}, addEventListener: (name, listener) => Object.assign(window.listeners, { [name]: listener }) };
  class ImageData {
    constructor(width, height) {
      Object.assign(this, { width, height, data: new Uint8ClampedArray(4 * width * height) });
    }
  }
  const context = vm.createContext({ document, location, window, ImageData, devicePixelRatio: 1 });
  const joined = ['"use strict"; {', ...scripts().map(([, text]) => text), "globalThis.of = (text) => eval(text); }"].join("\n");
  vm.runInContext(joined, context);
  const press = (key, { target = document.createElement("body"), ...others } = {}) => {
    const event = { key, target, isPrevented: false, preventDefault: () => Object.assign(event, { isPrevented: true }), ...others };
    document.listeners.keydown(event);
    return event;
  };
  const follow = () => window.listeners.hashchange();
  return { of: context.of, document, location, press, follow };
}

function caseOf(stated, at, structures) {
  const usual = { id: `case${at}`, status: "done", outcome: "accept", volumes: structures.map(() => 1), reasons: [], findings: [], gates: [], links: [] };
  return { ...usual, seconds: {}, truth: null, preview: null, peak_mib: null, software: 0, ...stated };
}

// Values of the page come from another realm; copies of them can be compared.
export function plain(value) {
  return JSON.parse(JSON.stringify(value));
}
