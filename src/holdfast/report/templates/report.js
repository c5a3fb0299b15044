"use strict";
// Charts: the still picture in the page is replaced by the interactive one, drawn to the width there is.
(function () {
  function fitted(spec, width) {
    var plot = Math.max(150, width - spec.usermeta.margin);
    (function fit(view) {
      if (typeof view.width === "number") view.width = plot;
      (view.vconcat || []).forEach(fit);
    })(spec);
    // Where there is little room, labels are the names alone.
    if (plot < 480) Object.values(spec.datasets).forEach(function (rows) {
      rows.forEach(function (row) { if (row.short) row.label = row.short; });
    });
    return spec;
  }
  function draw(box) {
    var spec = JSON.parse(document.getElementById(box.dataset.chart).textContent);
    var width = Math.floor(box.clientWidth);
    if (!width || box.dataset.width === String(width)) return;
    box.dataset.width = String(width);
    var place = document.createElement("div");
    // ast: Vega interprets its expressions, so the page needs no permission to compile code.
    var options = {
      mode: "vega-lite", renderer: "svg", ast: true, defaultStyle: true,
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: box.dataset.chart
    };
    place.style.visibility = "hidden";
    place.style.position = "absolute";
    box.appendChild(place);
    vegaEmbed(place, fitted(spec, width), options).then(function () {
      place.removeAttribute("style");
      box.replaceChildren(place);
    }, function (error) {
      place.remove();
      console.error(error);
    });
  }
  var boxes = document.querySelectorAll("[data-chart]"), timer;
  function drawAll() { boxes.forEach(draw); }
  if (window.vegaEmbed) {
    drawAll();
    addEventListener("resize", function () { clearTimeout(timer); timer = setTimeout(drawAll, 250); });
    document.addEventListener("toggle", drawAll, true);
  }
})();
// Tables: a press on a column's head sorts by it.
(function () {
  function key(row, column) {
    var cell = row.cells[column], value = cell ? cell.dataset.sort : "";
    return value === undefined ? cell.textContent.trim() : value === "" ? null : Number(value);
  }
  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null);
    return typeof a === "number" ? a - b : a.localeCompare(b);
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      head.querySelector("button").addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
        var rows = Array.from(body.rows).map(function (row) { return [key(row, column), row]; });
        rows.sort(function (a, b) {
          // What is undefined stays at the end, whichever way the rest is sorted.
          if (a[0] === null || b[0] === null) return compare(a[0], b[0]);
          return up ? compare(a[0], b[0]) : compare(b[0], a[0]);
        });
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.replaceChildren.apply(body, rows.map(function (pair) { return pair[1]; }));
      });
    });
  });
})();
// Blocks of text with a button that copies them.
document.querySelectorAll("button.copy").forEach(function (button) {
  button.addEventListener("click", function () {
    var block = document.getElementById(button.dataset.copies), range = document.createRange();
    range.selectNodeContents(block);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    // Older than navigator.clipboard, but it also works in a page opened from a disk.
    var done = document.execCommand("copy");
    button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
    setTimeout(function () { button.textContent = "Copy"; }, 2500);
  });
});
addEventListener("beforeprint", function () {
  document.querySelectorAll("details.print").forEach(function (part) { part.open = true; });
});
