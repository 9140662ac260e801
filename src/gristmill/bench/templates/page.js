// Tables sort by a click on a heading: by the cell's key where it has one, else by its text.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach(function (head, column) {
    head.querySelector("button").addEventListener("click", function () {
      const up = head.getAttribute("aria-sort") !== "ascending";
      const key = function (row) {
        const cell = row.cells[column];
        const value = cell.dataset.key === undefined ? cell.textContent.trim() : cell.dataset.key;
        return value === "" ? null : isNaN(value) ? value : Number(value);
      };
      const body = table.tBodies[0];
      const sorted = Array.from(body.rows).sort(function (first, second) {
        const a = key(first), b = key(second);
        if (a === null) return b === null ? 0 : 1;  // empty cells stay at the end
        if (b === null) return -1;
        const order = typeof a === "number" ? (typeof b === "number" ? a - b : -1)
          : typeof b === "number" ? 1 : a.localeCompare(b, undefined, { numeric: true });
        return up ? order : -order;
      });
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...sorted);
    });
  });
}
// On paper nothing is folded.
addEventListener("beforeprint", function () {
  for (const one of document.querySelectorAll("details")) one.open = true;
});
