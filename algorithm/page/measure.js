// An ellipse by hand: four ends of two axes that are dragged or moved by keys, measured as acouslic.ellipse does, and
// saved as a file for `acouslic amend`.

const SVG = "http://www.w3.org/2000/svg";
const handOverlay = byId("hand-overlay");
let ends = null; // [[end, end], [end, end]], each [x, y] in pixels; null until it was asked for

const middle = ([[x1, y1], [x2, y2]]) => [(x1 + x2) / 2, (y1 + y2) / 2];
const length = ([[x1, y1], [x2, y2]]) => Math.hypot(x2 - x1, y2 - y1);

// Ramanujan's first approximation, as acouslic.ellipse: with pixels that are not square the ellipse is stretched into
// millimetres first, where its semi-axes are the singular values of the map from the unit circle.
function circumferenceMm(axes) {
  const [rowMm, columnMm] = state.spacingMm;
  const halves = axes.map(([[x1, y1], [x2, y2]]) => [(x2 - x1) / 2 * columnMm, (y2 - y1) / 2 * rowMm]);
  const [[a, c], [b, d]] = halves;
  const sum = a * a + b * b + c * c + d * d, product = Math.abs(a * d - b * c);
  const root = Math.sqrt(Math.max(sum * sum - 4 * product * product, 0));
  const first = Math.sqrt((sum + root) / 2), second = Math.sqrt(Math.max((sum - root) / 2, 0));
  return Math.PI * (3 * (first + second) - Math.sqrt((3 * first + second) * (first + 3 * second)));
}

function ellipseCentre() {
  const axes = ends || state.axisEndsPx;
  return axes ? middle(axes[0]) : [state.columns / 2, state.rows / 2];
}

function startEnds() {
  if (state.axisEndsPx) return state.axisEndsPx.map((axis) => axis.map((end) => [...end]));
  const [x, y] = [state.columns / 2, state.rows / 2], [a, b] = [state.columns * 0.2, state.rows * 0.2];
  return [[[x - a, y], [x + a, y]], [[x, y - b], [x, y + b]]];
}

// One end goes to a point, the other end of its axis stays. The second axis follows: it keeps its length, stays at
// right angles, and crosses the first in the middle of both.
function moveEnd(axis, end, point) {
  const moved = [...ends[axis]], other = ends[1 - axis];
  moved[end] = [clamp(point[0], 0, state.columns - 1), clamp(point[1], 0, state.rows - 1)];
  const long = length(moved), half = length(other) / 2;
  if (long < 8) return;
  const [x, y] = middle(moved);
  const along = [(moved[1][0] - moved[0][0]) / long, (moved[1][1] - moved[0][1]) / long];
  let across = [-along[1], along[0]];
  const before = [other[1][0] - other[0][0], other[1][1] - other[0][1]];
  if (across[0] * before[0] + across[1] * before[1] < 0) across = [-across[0], -across[1]];
  ends[axis] = moved;
  ends[1 - axis] = [-half, half].map((by) => [x + by * across[0], y + by * across[1]]);
  drawHand();
}

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  parent.append(made);
  return made;
}

const hand = {};
function makeHand() {
  hand.ellipse = element("ellipse", { class: "hand-ellipse" }, handOverlay);
  hand.axes = [0, 1].map(() => element("line", { class: "hand-axis" }, handOverlay));
  const names = [["first axis, first end", "first axis, second end"], ["second axis, first end", "second axis, second end"]];
  hand.handles = names.map((pair, axis) => pair.map((name, end) => {
    const group = element("g", {
      class: "handle", tabindex: "0", role: "button", "aria-label": `${name}: the arrow keys move it`, "data-axis": axis, "data-end": end,
    }, handOverlay);
    const reach = element("circle", { class: "reach" }, group), grip = element("circle", { class: "grip" }, group);
    group.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      event.preventDefault();
      group.focus();
      group.setPointerCapture(event.pointerId);
    });
    group.addEventListener("pointermove", (event) => {
      if (group.hasPointerCapture(event.pointerId)) moveEnd(axis, end, pointOf(event));
    });
    group.addEventListener("lostpointercapture", speak);
    group.addEventListener("keydown", (event) => {
      if (event.key === " ") { // what presses a button would play the sweep, and the correction name another frame
        event.preventDefault();
        event.stopPropagation();
      }
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!steps) return;
      event.preventDefault();
      event.stopPropagation();
      const by = event.shiftKey ? 10 : 1;
      moveEnd(axis, end, [ends[axis][end][0] + by * steps[0], ends[axis][end][1] + by * steps[1]]);
      speak();
    });
    return { group, reach, grip };
  }));
}

function pointOf(event) {
  const box = handOverlay.getBoundingClientRect();
  return [
    (event.clientX - box.left) / box.width * state.columns - 0.5, (event.clientY - box.top) / box.height * state.rows - 0.5,
  ];
}

function drawHand() {
  if (!ends) return;
  const [[x, y], a, b] = [middle(ends[0]), length(ends[0]) / 2, length(ends[1]) / 2];
  const [[x1, y1], [x2, y2]] = ends[0];
  const angle = Math.atan2(y2 - y1, x2 - x1) * 180 / Math.PI;
  const set = (made, attributes) => {
    for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  };
  set(hand.ellipse, { cx: x, cy: y, rx: a, ry: b, transform: `rotate(${angle} ${x} ${y})` });
  const scale = handOverlay.getBoundingClientRect().width / state.columns || 1; // screen pixels for one of the frame
  ends.forEach((axis, number) => {
    set(hand.axes[number], { x1: axis[0][0], y1: axis[0][1], x2: axis[1][0], y2: axis[1][1] });
    axis.forEach(([cx, cy], end) => {
      set(hand.handles[number][end].reach, { cx, cy, r: 24 / scale });
      set(hand.handles[number][end].grip, { cx, cy, r: 8 / scale });
    });
  });
  tell();
}

function centile(mm) {
  if (!state.growth) return "";
  const z = (mm - state.growth.meanMm) / state.growth.deviationMm;
  const t = 1 / (1 + 0.2316419 * Math.abs(z)); // Abramowitz and Stegun 26.2.17, to 7.5e-8
  const tail = Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI)
    * t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
  const percent = 100 * (z > 0 ? 1 - tail : tail);
  if (percent < 1) return ", below the 1st centile";
  if (percent > 99) return ", above the 99th centile";
  const whole = Math.round(percent);
  const ending = whole % 100 > 10 && whole % 100 < 14 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[whole % 10] || "th";
  return `, ${whole}${ending} centile`;
}

function tell() {
  const mm = circumferenceMm(ends);
  byId("hand-mm").textContent = mm.toFixed(1);
  const model = state.circumferenceMm;
  const sign = mm >= model ? "+" : "−", apart = Math.abs(mm - model);
  let against = `${sign}${apart.toFixed(1)} mm (${sign}${(100 * apart / model).toFixed(1)} %) against the model`;
  if (model === null) against = "The model measured nothing";
  else if (apart < 0.05) against = "As the model has it";
  byId("hand-difference").textContent = `${against}; frame ${frame}${centile(mm)}.`;
}

const speak = () => { byId("spoken").textContent = `${circumferenceMm(ends).toFixed(1)} millimetres`; };

function measure(on) {
  if (on && !ends) {
    if (!hand.ellipse) makeHand();
    ends = startEnds();
  }
  byId("hand").hidden = byId("hand-key").hidden = !on;
  handOverlay.toggleAttribute("hidden", !on);
  viewer.classList.toggle("measuring", on);
  byId("measure").setAttribute("aria-pressed", String(on));
  byId("measure").textContent = on ? "End measuring" : "Measure by hand";
  if (on) drawHand();
}

byId("measure").addEventListener("click", () => measure(byId("hand").hidden));
byId("reset").addEventListener("click", () => {
  ends = startEnds();
  drawHand();
});
new ResizeObserver(drawHand).observe(viewer);
new MutationObserver(() => ends && tell()).observe(viewer, { attributeFilter: ["data-frame"] });

// ---- Saving

function correction() {
  const rounded = ends.map((axis) => axis.map((end) => end.map((value) => Number(value.toFixed(3)))));
  return {
    schema_version: 1,
    result_sha256: state.resultSha256,
    frame_number: frame,
    axis_ends_px: rounded,
    circumference_mm: Number(circumferenceMm(rounded).toFixed(4)),
    reader: byId("reader").value.trim(),
    comment: byId("comment").value.replace(/[\p{C}\p{Z}]+/gu, " ").trim(), // `amend` takes printable text alone
    made_at: new Date().toISOString(),
  };
}

function save() {
  const made = correction(), warning = byId("hand-warning");
  const known = /^[A-Za-z0-9._-]{1,16}$/.test(made.reader);
  warning.hidden = known;
  warning.textContent = known ? "" : "Give your initials first: letters, digits, point, hyphen or underscore, 16 at most.";
  if (!known) return byId("reader").focus();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${JSON.stringify(made, null, 2)}\n`], { type: "application/json" }));
  link.download = `correction-${state.case.replace(/[^A-Za-z0-9._-]+/g, "_").slice(0, 80)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  byId("spoken").textContent = "The correction was saved";
}
byId("save").addEventListener("click", save);
