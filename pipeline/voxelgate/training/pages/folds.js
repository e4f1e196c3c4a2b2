"use strict";
{
  const order = document.getElementById("order");
  const direction = document.getElementById("direction");
  const room = document.getElementById("cases");
  const cases = [...room.children].map((element) => ({ element, dice: JSON.parse(element.dataset.dice) }));

  // Cases without the structure come last, whatever the direction.
  function sort() {
    const sign = Number(direction.value);
    const rank = ({ dice }) => (dice[order.value] ?? null) === null ? Infinity : sign * dice[order.value];
    const sorted = cases.map((one, at) => [rank(one), at, one.element]).sort(([a, i], [b, j]) => (a === b ? i - j : a < b ? -1 : 1));
    room.replaceChildren(...sorted.map(([, , element]) => element));
  }

  // Go to the case that a dot leads to, now that its place among the others may be another.
  function follow() {
    const found = document.getElementById(location.hash.slice(1));
    if (found) found.focus();
  }

  order.addEventListener("change", sort);
  direction.addEventListener("change", sort);
  window.addEventListener("hashchange", follow);
  follow();
}
