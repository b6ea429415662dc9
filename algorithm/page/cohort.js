// Sorts and filters the table of cases. The page is complete without it.

const body = byId("cases").tBodies[0];
const rows = [...body.rows];
const headers = [...document.querySelectorAll("#cases thead th")];
const find = byId("find");
const states = [...document.querySelectorAll(".states button")];
let wanted = "all";

const offset = rows.length ? rows[0].cells.length - headers.length : 0; // a column of pictures has no heading
const valueOf = (row, column) => row.cells[column + offset].dataset.value;

function sort(header) {
  const column = headers.indexOf(header);
  const numeric = header.classList.contains("number");
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of headers) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const sorted = [...rows].sort((first, second) => {
    const [a, b] = [valueOf(first, column), valueOf(second, column)];
    if (a === "" || b === "") return (a === "") - (b === ""); // without a value: at the end, either way
    const order = numeric && !Number.isNaN(Number(a)) && !Number.isNaN(Number(b)) ? Number(a) - Number(b) : compare(a, b);
    return ascending ? order : -order;
  });
  body.append(...sorted);
}

function filter() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !((wanted === "all" || row.dataset.state === wanted) && words.every((word) => text.includes(word)));
    shown += !row.hidden;
  }
  byId("shown").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
}

for (const header of headers) header.querySelector("button").addEventListener("click", () => sort(header));
for (const button of states) {
  button.addEventListener("click", () => {
    wanted = button.dataset.state;
    for (const other of states) other.setAttribute("aria-pressed", String(other === button));
    filter();
  });
}
find.addEventListener("input", filter);
