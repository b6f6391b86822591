"use strict";
// Values under the pointer: the nearest dot of a figure says what it is.
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg");
  const said = figure.querySelector("output");
  const marks = [...svg.querySelectorAll(".mark")];
  if (!marks.length) continue;
  const places = marks.map((mark) => [Number(mark.getAttribute("cx")), Number(mark.getAttribute("cy"))]);
  let near = null;
  const tell = (mark) => {
    if (mark === near) return;
    near?.classList.remove("near");
    mark?.classList.add("near");
    near = mark;
    said.textContent = mark ? mark.dataset.text : "";
  };
  const look = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const y = (event.clientY - box.top) * scale;
    let best = 0;
    let least = Infinity;
    places.forEach(([left, top], index) => {
      const distance = (left - x) ** 2 + (top - y) ** 2 / 4;
      if (distance < least) [best, least] = [index, distance];
    });
    tell(marks[best]);
  };
  svg.addEventListener("pointermove", look);
  svg.addEventListener("pointerdown", look);
  svg.addEventListener("pointerleave", () => tell(null));
}
// Tables are sorted by the column whose head is pressed, and the other way when it is pressed again.
for (const table of document.querySelectorAll("table.sortable")) {
  const [head] = table.tHead.rows;
  const [body] = table.tBodies;
  if (body.rows.length < 2 ) continue;
  [...head.cells].forEach((cell, column) => {
    const numeric = cell.classList.contains("n");
    const key = (row) => {
      const text = row.cells[column].textContent.trim();
      const number = Number.parseFloat(text.replaceAll(",", ""));
      return numeric ? (Number.isNaN(number) ? -Infinity : number) : text;
    };
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const sign = cell.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([one], [other]) => sign * (one < other ? -1 : one > other ? 1 : 0));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
