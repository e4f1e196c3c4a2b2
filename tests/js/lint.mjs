// Lint the report's script as the browser sees it, all files joined, the scripts of other pages, and the tests; name each
// fault by file and line.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import js from "@eslint/js";
import { ESLint } from "eslint";

import { scripts } from "./page.mjs";

const globals = (...names) => Object.fromEntries(names.map((name) => [name, "readonly"]));
const PAGE = globals(
  "atob", "Blob", "DecompressionStream", "devicePixelRatio", "document", "Image", "ImageData", "location", "Response",
  "ResizeObserver", "setInterval", "URLSearchParams", "window",
);
const OTHERS = ["training/pages/progress.js", "training/pages/folds.js"];
const PARSING = ["innerHTML", "outerHTML", "insertAdjacentHTML", "write", "writeln"];
const RULES = {
  "consistent-return": "off", // event handlers return nothing, or what another one does
  eqeqeq: "error",
  "no-eval": "error",
  "no-implied-eval": "error",
  "no-new-func": "error",
  "no-restricted-properties": ["error", ...PARSING.map((property) => ({ property, message: "Text is never parsed as HTML; use `el`." }))],
  "no-shadow": "error",
  "no-throw-literal": "error",
  "no-use-before-define": ["error", { functions: false, classes: false, variables: false }],
  "no-useless-concat": "error",
  "no-var": "error",
  "object-shorthand": "error",
  "prefer-arrow-callback": "error",
  "prefer-const": "error",
  "prefer-template": "error",
  complexity: ["error", 12],
  "max-lines-per-function": ["error", { max: 45 }],
  "max-params": ["error", 7],
};
const LANGUAGES = {
  script: { sourceType: "script", ecmaVersion: 2023, globals: PAGE },
  module: { sourceType: "module", ecmaVersion: 2023, globals: globals("console", "process", "URL") },
};

function linter(language, rules = RULES) {
  const config = [js.configs.recommended, { languageOptions: LANGUAGES[language], rules }];
  return new ESLint({ cwd: fileURLToPath(new URL(".", import.meta.url)), overrideConfigFile: true, overrideConfig: config });
}

// Return the file and the line of a line of the joined script.
function place(line) {
  let first = 2; // after `"use strict"; {`
  for (const [name, text] of scripts()) {
    const count = text.split("\n").length;
    if (line < first + count) return `${name}:${line - first + 1}`;
    first += count;
  }
  return `the end:${line}`;
}

const joined = ['"use strict"; {', ...scripts().map(([, text]) => text), "}"].join("\n");
const [page] = await linter("script").lintText(joined);
const others = OTHERS.map((name) => [name, readFileSync(new URL(`../../pipeline/voxelgate/${name}`, import.meta.url), "utf8")]);
const otherFaults = [];
for (const [name, text] of others) {
  const [{ messages }] = await linter("script").lintText(text);
  otherFaults.push(...messages.map((fault) => [`${name}:${fault.line}`, fault]));
}
const tests = await linter("module", { ...RULES, "no-eval": "off", "max-lines-per-function": "off" }).lintFiles(["*.mjs"]);
const faults = [
  ...page.messages.map((fault) => [place(fault.line), fault]),
  ...otherFaults,
  ...tests.flatMap(({ filePath, messages }) => messages.map((fault) => [`${filePath.split("/").at(-1)}:${fault.line}`, fault])),
];
for (const [where, { message, ruleId }] of faults) console.log(`${where}: ${message} (${ruleId})`);
process.exitCode = faults.length ? 1 : 0;
