// Sorts the table of cases by a column and hides rows. The page is complete without it.

const table = byId("cases");
const body = table.tBodies[0];
const headers = [...table.querySelectorAll("thead th")];

// What a cell is sorted by: its value, or what it shows.
const valueOf = (row, header) => {
  const cell = row.cells[header.cellIndex];
  return cell.dataset.value ?? cell.textContent;
};

// What is empty comes last, either way; equal rows stay in their order.
const sortBy = (header, descending) => {
  const compareText = new Intl.Collator("en", { numeric: true }).compare;
  const numeric = header.classList.contains("number");
  const compare = (a, b) => (numeric && !Number.isNaN(a - b) ? a - b : compareText(a, b));
  const sorted = [...body.rows].sort((first, second) => {
    const [a, b] = [valueOf(first, header), valueOf(second, header)];
    if (a === "" || b === "") return (a === "") - (b === "");
    return descending ? compare(b, a) : compare(a, b);
  });
  body.append(...sorted);
  for (const other of headers) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
};

for (const header of headers) {
  header.querySelector("button").addEventListener("click", () => {
    sortBy(header, header.getAttribute("aria-sort") === "ascending");
  });
}

// Hides the other rows; returns how many stay.
const showRows = (isWanted) => {
  for (const row of body.rows) row.hidden = !isWanted(row);
  return [...body.rows].filter((row) => !row.hidden).length;
};
