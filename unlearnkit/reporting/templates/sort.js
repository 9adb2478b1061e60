// Sorts a table by the column whose heading is clicked: by number where each cell begins with one, else by text.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), table = heading.closest("table");
    const up = heading.getAttribute("aria-sort") !== "ascending";
    const column = [...heading.parentNode.children].indexOf(heading);
    const text = (row) => row.children[column].textContent.trim();
    const value = (row) => parseFloat(text(row).replaceAll(",", ""));
    const rows = [...table.tBodies[0].rows], numbers = rows.every((row) => text(row) === "–" || !isNaN(value(row)));
    const known = (row) => !numbers || !isNaN(value(row));
    rows.sort((a, b) => {
      if (!known(a) || !known(b)) return known(b) - known(a);  // what has no number stays at the end
      return (up ? 1 : -1) * (numbers ? value(a) - value(b) : text(a).localeCompare(text(b)));
    });
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  });
}
