// Finds cases by words, and by what became of them.

const find = byId("find");
const states = [...document.querySelectorAll(".states button")];
let wanted = "all";

function filter() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = showRows((row) => {
    const text = row.textContent.toLowerCase();
    return (wanted === "all" || row.dataset.state === wanted) && words.every((word) => text.includes(word));
  });
  byId("shown").textContent = shown === body.rows.length ? "" : `${shown} of ${body.rows.length} shown`;
}

for (const button of states) {
  button.addEventListener("click", () => {
    wanted = button.dataset.state;
    for (const other of states) other.setAttribute("aria-pressed", String(other === button));
    filter();
  });
}
find.addEventListener("input", filter);
