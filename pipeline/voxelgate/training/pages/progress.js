"use strict";
{
  const RELOAD_MS = 30_000;
  const QUIET_MIN = 10;
  const SVG = "http://www.w3.org/2000/svg";
  const history = JSON.parse(document.getElementById("history").textContent);
  const slider = document.getElementById("step");
  const news = document.getElementById("news");
  const isDone = news.dataset.done === "true";

  // Show what was found at one of the validations.
  function show(at) {
    document.getElementById("step-name").textContent = history.steps[at].toLocaleString("en");
    for (const element of document.querySelectorAll(".case")) {
      const { dice, paths } = history.cases[element.dataset.case][at];
      element.querySelector(".case-dice").textContent = dice === null ? "no true structure" : `Dice ${dice.toFixed(3)}`;
      element.querySelectorAll(".found").forEach((group, plane) => group.replaceChildren(...Object.entries(paths[plane]).map(outline)));
    }
  }

  function outline([value, path]) {
    const element = document.createElementNS(SVG, "path");
    for (const [name, text] of Object.entries({ class: `result s${value}`, d: path })) element.setAttribute(name, text);
    return element;
  }

  // Say how long ago the page was written; one that nobody writes any more belongs to a training that has ended.
  function tellAge() {
    const minutes = Math.floor((Date.now() / 1000 - Number(news.dataset.written)) / 60);
    if (!isDone && minutes >= QUIET_MIN) news.textContent = `nothing new for ${minutes} minutes: see whether the training still runs`;
  }

  // The step that is looked at stays over a reload, unless it is the last one.
  function keep() {
    location.replace(Number(slider.value) < history.steps.length - 1 ? `#step=${history.steps[slider.value]}` : "#");
  }

  if (slider) {
    const kept = history.steps.indexOf(Number(new URLSearchParams(location.hash.slice(1)).get("step")));
    if (kept >= 0) {
      slider.value = kept;
      show(kept);
    }
    slider.addEventListener("input", () => show(Number(slider.value)));
    slider.addEventListener("change", keep);
  }
  tellAge();
  if (!isDone) {
    setInterval(() => {
      tellAge();
      if (!document.hidden && !document.querySelector(":active")) location.reload();
    }, RELOAD_MS);
  }
}
