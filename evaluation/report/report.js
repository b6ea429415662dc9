// Filters the table of cases by name, and lets an order be linked to: #sort=score or #sort=-score.

const sortByAddress = () => {
  const match = /^#sort=(-?)([a-z0-9]+)$/.exec(location.hash);
  const header = match && headers.find((other) => other.dataset.key === match[2]);
  if (!header) return;
  sortBy(header, match[1] === "-");
  table.closest("section").scrollIntoView();
};

for (const header of headers) {
  header.addEventListener("click", () => {
    const sign = header.getAttribute("aria-sort") === "descending" ? "-" : "";
    history.replaceState(null, "", `#sort=${sign}${header.dataset.key}`);
  });
}

const filter = byId("filter");
const applyFilter = () => {
  const wanted = filter.value.trim().toLowerCase();
  const count = showRows((row) => row.cells[0].textContent.toLowerCase().includes(wanted));
  byId("shown").textContent = `${count} of ${body.rows.length} cases`;
};

filter.addEventListener("input", applyFilter);
filter.closest(".filter").hidden = false;
addEventListener("hashchange", sortByAddress);
applyFilter();
sortByAddress();
document.documentElement.dataset.script = "ready";
