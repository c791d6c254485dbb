"use strict";
const spoken = document.getElementById("spoken");
function key(cell) {
  const text = cell.textContent.trim();
  const value = text.split(" ")[0].replace(/,/g, "").replace("\u2212", "-");
  if (value === "inf" || value === "+inf") return Infinity;
  if (value === "-inf") return -Infinity;
  return value === "" || Number.isNaN(Number(value)) ? text : Number(value);
}
const missing = (value) => value === "nan" || value === "+nan" || value === "\u2013" || value === "";
function compared(a, b) {
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  return typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
      rows.sort(([a], [b]) => (falling && !missing(a) && !missing(b) ? -compared(a, b) : compared(a, b)));
      body.append(...rows.map(([, row]) => row));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      spoken.textContent = "Sorted by " + button.textContent + ", " + head.getAttribute("aria-sort") + ".";
    });
  });
}
