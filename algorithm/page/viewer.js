// Goes through the frames of a case, by keys, mouse and finger, and compares them.

const state = JSON.parse(document.getElementById("state").textContent);
const viewer = byId("viewer"), picture = byId("picture"), position = byId("position"), cursor = byId("cursor");
const modelOverlay = byId("model-overlay");

let frame = state.shown;
let playing = 0; // the timer
let outlined = true;

// ---- Frames

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const sweepOf = (index) => state.sweeps.findIndex(([first, last]) => index >= first && index <= last);
const fullSize = (index) => index in state.full;
const urlOf = (index) => `data:image/jpeg;base64,${fullSize(index) ? state.full[index] : state.reduced[index / state.step]}`;

// Of a very long stack only every so many frames have a picture, and the full-size ones.
const pictured = (index) => fullSize(index) || index % state.step === 0;

function before(index) {
  while (!pictured(index)) index -= 1;
  return index;
}

function after(index) {
  while (index < state.frames && !pictured(index)) index += 1;
  return index < state.frames ? index : before(state.frames - 1);
}

function show(index) {
  frame = before(clamp(Math.round(index), 0, state.frames - 1));
  picture.src = urlOf(frame);
  const sweep = sweepOf(frame) + 1, presence = state.presence[frame].toFixed(2);
  const chosen = frame === state.chosen ? ", the chosen frame" : "";
  picture.alt = `Frame ${frame}, sweep ${sweep}`;
  position.value = frame;
  position.setAttribute("aria-valuetext", `frame ${frame}, sweep ${sweep}, presence ${presence}${chosen}`);
  byId("caption").textContent = `Frame ${frame} · sweep ${sweep} · presence ${presence}`;
  byId("sharpness").hidden = fullSize(frame) || state.reducedBy === 1;
  cursor.setAttribute("d", `M${frame + 0.5} -4V104`);
  modelOverlay.toggleAttribute("hidden", !(outlined && frame === state.shown));
  for (const button of document.querySelectorAll(".runner")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.frame) === frame));
  }
  viewer.dataset.frame = frame;
}

function step(by) {
  stop();
  const to = clamp(frame + by, 0, state.frames - 1);
  show(by > 0 ? after(to) : before(to));
}

function goTo(index) {
  stop();
  show(index);
}

function stop() {
  clearInterval(playing);
  playing = 0;
  byId("play").setAttribute("aria-pressed", "false");
  byId("play").textContent = "Play";
}

function play() {
  if (playing) return stop();
  const [first, last] = state.sweeps[sweepOf(frame)];
  if (frame + state.step > last) show(after(first));
  byId("play").setAttribute("aria-pressed", "true");
  byId("play").textContent = "Pause";
  playing = setInterval(() => (frame + state.step <= last ? show(frame + state.step) : stop()), 40);
}

function goHome() {
  stop();
  show(state.shown);
}

function compare(on) {
  byId("compared").hidden = !on;
  byId("panes").classList.toggle("two", on);
  byId("compare").setAttribute("aria-pressed", String(on));
  drawHand(); // the viewer has another size now
}

// ---- Keys, mouse, touch

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const many = event.shiftKey ? 10 : 1;
  const [first, last] = state.sweeps[sweepOf(frame)];
  const actions = {
    ArrowLeft: () => step(-many), ArrowRight: () => step(many), ArrowDown: () => step(-many), ArrowUp: () => step(many),
    PageDown: () => step(-10), PageUp: () => step(10), Home: () => goTo(after(first)), End: () => goTo(last),
    " ": play, c: goHome, C: goHome,
  };
  const sweep = state.sweeps[Number(event.key) - 1];
  const action = sweep ? () => goTo(after(sweep[0])) : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

viewer.addEventListener("keydown", key);
position.addEventListener("keydown", key);
position.addEventListener("input", () => {
  stop();
  show(Number(position.value));
});
viewer.addEventListener("wheel", (event) => {
  if (event.ctrlKey) return; // the browser's zoom
  event.preventDefault();
  step(Math.sign(event.deltaY || event.deltaX) * (event.shiftKey ? 10 : 1));
}, { passive: false });

// ---- Twice the size: what is shown starts at (left, top), in parts of the picture's width and height.

const ZOOM = 2;
let zoomed = null; // {left, top}

function zoomTo(left, top) {
  zoomed = { left: clamp(left, 0, 1 - 1 / ZOOM), top: clamp(top, 0, 1 - 1 / ZOOM) };
  placeLayers();
}

function placeLayers() {
  const transform = zoomed ? `scale(${ZOOM}) translate(${-100 * zoomed.left}%, ${-100 * zoomed.top}%)` : "";
  for (const layer of document.querySelectorAll(".viewer .frame > img, .viewer .frame > svg")) {
    layer.style.transformOrigin = "0 0";
    layer.style.transform = transform;
  }
  viewer.classList.toggle("zoomed", zoomed !== null);
  byId("zoom").setAttribute("aria-pressed", String(zoomed !== null));
  drawHand();
}

byId("zoom").addEventListener("click", () => {
  const [x, y] = ellipseCentre();
  if (zoomed) {
    zoomed = null;
    placeLayers();
  } else {
    zoomTo((x + 0.5) / state.columns - 0.5 / ZOOM, (y + 0.5) / state.rows - 0.5 / ZOOM);
  }
});

// ---- A drag over the picture goes through the frames, or moves what is enlarged

let drag = null; // where it began: {x, y, frame, zoomed}
viewer.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || event.target.closest(".handle")) return;
  drag = { x: event.clientX, y: event.clientY, frame, zoomed };
  viewer.setPointerCapture(event.pointerId);
});
viewer.addEventListener("pointermove", (event) => {
  if (!drag) return;
  if (drag.zoomed) {
    const { clientWidth: width, clientHeight: height } = viewer;
    zoomTo(
      drag.zoomed.left - (event.clientX - drag.x) / width / ZOOM, drag.zoomed.top - (event.clientY - drag.y) / height / ZOOM,
    );
    return;
  }
  const framesPerPixel = Math.max(140 / viewer.clientWidth, 0.12);
  const to = drag.frame + (event.clientX - drag.x) * framesPerPixel;
  if (Math.round(to) !== frame) step(Math.round(to) - frame);
});
for (const ending of ["pointerup", "pointercancel"]) viewer.addEventListener(ending, () => { drag = null; });

byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("play").addEventListener("click", play);
byId("home").addEventListener("click", goHome);
byId("compare").addEventListener("click", () => compare(byId("compared").hidden));
byId("outline").addEventListener("click", () => {
  outlined = !outlined;
  byId("outline").setAttribute("aria-pressed", String(outlined));
  show(frame);
});
byId("gain").addEventListener("input", (event) => {
  for (const image of document.querySelectorAll(".viewer img")) image.style.filter = `brightness(${event.target.value}%)`;
});
for (const button of document.querySelectorAll(".runner")) {
  button.addEventListener("click", () => {
    stop();
    show(Number(button.dataset.frame));
    compare(true);
    viewer.scrollIntoView({ block: "nearest" });
    viewer.focus({ preventScroll: true });
  });
}

show(frame);
