// The preview of a case: in this page, or in a file beside it, which is loaded when one of its cases is opened.

const EMBEDDED = "page";
const UNREADABLE = "unreadable";
const MISSING = new Error("a file with previews is not where the page expects it");
let pack = { name: null, previews: {} }; // the file that was loaded last; no other is kept

// The table is shown while the browser still reads the pictures that follow this script.
const wholePage = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));

// Return the preview of a case, null if it has none that can be shown.
async function previewOf({ number, preview }) {
  if (preview === null || preview === UNREADABLE || preview.startsWith("./")) return null;
  if (preview === EMBEDDED) {
    await wholePage;
    return JSON.parse(byId(`preview-${number}`)?.textContent ?? "null");
  }
  if (pack.name !== preview) {
    const previews = await loaded(preview);
    pack = { name: preview, previews };
  }
  return JSON.parse(pack.previews[number]);
}

const given = new WeakMap(); // what each script has handed over
window.voxelgatePreviews = (previews) => given.set(document.currentScript, previews);

// Load a file of previews. From a disk a page may read no file, but it may load a script, which calls a function.
function loaded(name) {
  return new Promise((resolve, reject) => {
    const ended = () => {
      script.remove();
      if (given.has(script)) resolve(given.get(script));
      else reject(MISSING);
    };
    const script = el("script", { src: `${FACTS.folder}/${name}.js`, onload: ended, onerror: ended });
    document.head.append(script);
  });
}
