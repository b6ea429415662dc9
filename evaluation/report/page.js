// Sorts and filters the table of cases. The page is complete without it.
(() => {
  "use strict";
  const root = document.documentElement;
  const table = document.getElementById("cases");
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");

  const valueOf = (row, index, kind) => {
    const cell = row.cells[index];
    if (kind !== "number") return cell.textContent;
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };

  // Empty cells come last, whichever way; equal ones stay in their order.
  const sortBy = (key, descending) => {
    const index = headers.findIndex((header) => header.dataset.key === key);
    if (index < 0) return;
    const kind = headers[index].dataset.kind;
    const sign = descending ? -1 : 1;
    const rows = [...body.rows].map((row) => [valueOf(row, index, kind), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      if (kind === "number") return sign * (a - b);
      return sign * a.localeCompare(b, "en", { numeric: true });
    });
    body.append(...rows.map(([, row]) => row));
    headers.forEach((header, position) => {
      if (position === index) header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    });
    root.dataset.sort = `${key} ${descending ? "descending" : "ascending"}`;
  };

  // #sort=score or #sort=-score, so that an order can be linked to.
  const sortByAddress = () => {
    const match = /^#sort=(-?)([a-z0-9]+)$/.exec(location.hash);
    if (!match) return;
    sortBy(match[2], match[1] === "-");
    table.closest("section").scrollIntoView();
  };

  for (const header of headers) {
    header.querySelector("button").addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      sortBy(header.dataset.key, descending);
      history.replaceState(null, "", `#sort=${descending ? "-" : ""}${header.dataset.key}`);
    });
  }

  const applyFilter = () => {
    const wanted = filter.value.trim().toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = `${count} of ${body.rows.length} cases`;
  };

  filter.addEventListener("input", applyFilter);
  filter.closest(".filter").hidden = false;
  window.addEventListener("hashchange", sortByAddress);
  applyFilter();
  sortByAddress();
  root.dataset.script = "ready";
})();
