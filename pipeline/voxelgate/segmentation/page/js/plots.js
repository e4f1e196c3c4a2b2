// A strip plot: one line for each case, the middle half as a bar, unusual cases as circles, the shown case as a triangle.
// Of many cases there is one line for each place, the longer the more cases it stands for.
// The axis is that of the usual cases; what lies far beyond it is an arrow head at its end.

const PLOT = { width: 340, height: 44, left: 12, right: 328, middle: 19 };
const BEYOND = 0.3; // part of the usual range that the axis goes on at either end
const LOGARITHMIC_FROM = 30; // largest by smallest usual volume: a linear axis would press most cases into one line
const LABEL_ROOM = 64;
const REACH = 8; // of a line, above and below the axis
const MOST_LINES = 200; // of one length; more would be one grey bar

function stripPlot(position, value = null) {
  const spread = SPREADS[position];
  const usual = spread.sorted.filter((one) => !spread.isOdd(one));
  const odd = spread.sorted.filter((one) => spread.isOdd(one));
  const x = scale(usual);
  const { middle } = PLOT;
  const parts = [
    svg("line", { class: "axis", x1: PLOT.left, x2: PLOT.right, y1: middle, y2: middle }),
    svg("rect", { class: "box", x: x(spread.low), width: Math.max(1, x(spread.high) - x(spread.low)), y: middle - 5, height: 10 }),
    svg("path", { class: "one", d: lines(usual.map(x)) }),
    svg("line", { class: "middle", x1: x(spread.middle), x2: x(spread.middle), y1: middle - 10, y2: middle + 10 }),
    ...odd.map((one) => oddMark(x(one))),
    ...axisLabels(usual, spread.middle, x),
  ];
  if (value !== null) {
    const at = x(value);
    parts.push(svg("line", { class: "here-line", x1: at, x2: at, y1: middle - 9, y2: middle + 10 }));
    parts.push(svg("path", { class: "here", d: `M${at - 6} 1h12l-6 10z` }));
  }
  return svg("svg", { class: "plot", viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img", "aria-label": described(position, value) }, ...parts);
}

function lines(positions) {
  const isMany = positions.length > MOST_LINES;
  const counts = new Map();
  for (const position of positions) {
    const at = position.toFixed(isMany ? 0 : 1);
    counts.set(at, (counts.get(at) ?? 0) + 1);
  }
  const most = isMany ? Math.max(...counts.values()) : 1;
  const reach = (count) => Math.min(REACH, 1 + ((REACH - 1) * count) / most);
  return [...counts].map(([at, count]) => `M${at} ${(PLOT.middle - reach(count)).toFixed(1)}v${(2 * reach(count)).toFixed(1)}`).join("");
}

function oddMark(at) {
  const { middle, left, right } = PLOT;
  if (at > left && at < right) return svg("circle", { class: "odd", cx: at, cy: middle, r: 3.5 });
  const way = at <= left ? -1 : 1;
  return svg("path", { class: "beyond", d: `M${at} ${middle - 5}l${6 * way} 5l${-6 * way} 5` });
}

function axisLabels(usual, median, x) {
  const label = (value, anchor, text) => svg("text", { x: x(value), y: PLOT.height - 3, "text-anchor": anchor }, text);
  const [least, most] = [usual[0], usual[usual.length - 1]];
  if (x(most) - x(least) < LABEL_ROOM) return [label(median, "middle", `${size(median)} ${UNIT}`)];
  const isApart = Math.min(x(median) - x(least), x(most) - x(median)) > LABEL_ROOM;
  return [label(least, "middle", size(least)), label(most, "middle", `${size(most)} ${UNIT}`), ...(isApart ? [label(median, "middle", size(median))] : [])];
}

function described(position, value) {
  const spread = SPREADS[position];
  const [least, most] = [spread.sorted[0], spread.sorted[spread.sorted.length - 1]];
  const range = `${counted(spread.sorted.length, "case", "cases")} from ${size(least)} to ${size(most)} ${UNIT}, median ${size(spread.middle)} ${UNIT}`;
  return value === null ? `${STRUCTURES[position]}: ${range}` : `${size(value)} ${UNIT} among ${range}; ${place(spread, value)}`;
}

// Return what turns volumes into places on the axis; those beyond it come to its ends.
function scale(usual) {
  const [least, most] = [usual[0], usual[usual.length - 1]];
  const on = least > 0 && most > LOGARITHMIC_FROM * least ? (value) => Math.log(Math.max(value, least / 10)) : (value) => value;
  const span = on(most) - on(least) || 1;
  const share = (value) => ((on(value) - on(least)) / span + BEYOND) / (1 + 2 * BEYOND);
  return (value) => PLOT.left + Math.min(1, Math.max(0, share(value))) * (PLOT.right - PLOT.left);
}
