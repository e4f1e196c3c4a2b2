// What is known of all cases: parsed once, with the volumes of each structure in order.

const FACTS = JSON.parse(byId("facts").textContent);
const STRUCTURES = FACTS.structures;
const CASES = FACTS.cases;
const UNIT = FACTS.unit;
const MEASURE = UNIT === "px" ? "area" : "volume";
const HAS_TRUTH = CASES.some((one) => one.truth);
const HAS_FORETOLD = CASES.some((one) => one.foretold);
CASES.forEach((one, number) => {
  one.number = number;
  one.time = Object.values(one.seconds).reduce((sum, value) => sum + value, 0);
  one.text = [one.id, WORD_OF[one.outcome], ...one.reasons, ...one.findings].join("\n").toLowerCase();
});

const FEWEST_FOR_ODD = 8;
const SPREADS = STRUCTURES.map((_, position) => {
  const sorted = CASES.map((one) => one.volumes[position])
    .filter((value) => value > 0) // of a structure that was not found there is no volume to compare
    .sort((a, b) => a - b);
  const [low, middle, high] = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
  const reach = sorted.length < FEWEST_FOR_ODD ? Infinity : 1.5 * (high - low); // Tukey's fences
  return { sorted, low, middle, high, isOdd: (value) => value < low - reach || value > high + reach };
});

function quantile(sorted, share) {
  const position = share * (sorted.length - 1);
  const [lower, upper] = [sorted[Math.floor(position)], sorted[Math.ceil(position)]];
  return lower + (upper - lower) * (position % 1);
}

function place(spread, value) {
  const smaller = spread.sorted.filter((other) => other < value).length;
  return `${counted(smaller, "case", "cases")} smaller, ${spread.sorted.length - smaller - 1} not`;
}
